// A bare server on gRPC C++'s callback API: what a front that appends nothing costs in stock C++.
//
//   bare_server --response=FILE --consume_bytes=N [--consume_file=FILE]
//
// Answers every produce request with the bytes in the first FILE, a valid ProduceMessageResponse, and ConsumeMessages
// with as many messages of N bytes as the request's max_records says: constant ones, or, where its offset is -1, what
// the second FILE has, from its beginning on. Requests of produce are not even parsed: they stay the bytes that came, so
// this is the least that such a server can cost.

#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "common.h"
#include "takhin/v1/takhin.grpc.pb.h"

namespace {

using grpc::ByteBuffer;
using takhin::v1::TakhinService;

grpc::Slice response_slice;
grpc::Slice consumed_slice;
int consumed_file = -1;

ByteBuffer buffer_of(const grpc::Slice& slice) { return ByteBuffer(&slice, 1); }

class ProduceStream : public grpc::ServerBidiReactor<ByteBuffer, ByteBuffer> {
 public:
  ProduceStream() : response_(buffer_of(response_slice)) { StartRead(&request_); }
  void OnReadDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::OK);
    StartWrite(&response_);
  }
  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::CANCELLED);
    response_ = buffer_of(response_slice);
    StartRead(&request_);
  }
  void OnDone() override { delete this; }

 private:
  ByteBuffer request_, response_;
};

class Consume : public grpc::ServerWriteReactor<ByteBuffer> {
 public:
  Consume(int64_t left, bool reads) : left_(left), reads_(reads) { next(); }
  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::CANCELLED);
    next();
  }
  void OnDone() override { delete this; }

 private:
  void next() {
    if (left_-- <= 0) return Finish(grpc::Status::OK);
    if (!reads_) {
      response_ = buffer_of(consumed_slice);
    } else {
      grpc_slice read = grpc_slice_malloc(consumed_slice.size());
      ssize_t size = pread(consumed_file, GRPC_SLICE_START_PTR(read), consumed_slice.size(), at_);
      if (size != static_cast<ssize_t>(consumed_slice.size())) bench::fail("no such file, or it has an end");
      at_ += size;
      response_ = buffer_of(grpc::Slice(read, grpc::Slice::STEAL_REF));
    }
    StartWrite(&response_);
  }
  int64_t left_;
  bool reads_;
  off_t at_ = 0;
  ByteBuffer response_;
};

using Base = TakhinService::WithRawCallbackMethod_ProduceMessage<
    TakhinService::WithRawCallbackMethod_ProduceMessageStream<
        TakhinService::WithRawCallbackMethod_ConsumeMessages<TakhinService::Service>>>;

class Bare final : public Base {
 public:
  grpc::ServerUnaryReactor* ProduceMessage(
      grpc::CallbackServerContext* context, const ByteBuffer*, ByteBuffer* response) override {
    *response = buffer_of(response_slice);
    auto* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
  grpc::ServerBidiReactor<ByteBuffer, ByteBuffer>* ProduceMessageStream(grpc::CallbackServerContext*) override {
    return new ProduceStream;
  }
  grpc::ServerWriteReactor<ByteBuffer>* ConsumeMessages(
      grpc::CallbackServerContext*, const ByteBuffer* request) override {
    ByteBuffer copy(*request);
    takhin::v1::ConsumeMessagesRequest asked;
    if (!grpc::SerializationTraits<takhin::v1::ConsumeMessagesRequest>::Deserialize(&copy, &asked).ok()) {
      return new Consume(0, false);
    }
    return new Consume(asked.max_records(), asked.offset() == -1);
  }
};

}  // namespace

int main(int argc, char** argv) {
  bench::Flags flags(argc, argv);
  response_slice = grpc::Slice(bench::read_file(flags.text("response")));
  consumed_slice = grpc::Slice(std::string(static_cast<size_t>(flags.number("consume_bytes", 1 << 20)), '\0'));
  std::string path = flags.text("consume_file", "");
  if (!path.empty() && (consumed_file = open(path.c_str(), O_RDONLY)) < 0) bench::fail("can't open " + path);
  // Before any thread is there: they are to leave these to sigwait.
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigaddset(&ends, SIGINT);
  pthread_sigmask(SIG_BLOCK, &ends, nullptr);

  Bare service;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.SetMaxReceiveMessageSize(10 << 20);
  builder.RegisterService(&service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (!server) bench::fail("can't listen");
  std::printf("bare C++: serving on 127.0.0.1:%d\n", port);
  std::fflush(stdout);
  int number = 0;
  sigwait(&ends, &number);
  server->Shutdown(std::chrono::system_clock::now());
  return 0;
}
