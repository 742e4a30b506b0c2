// Load by stock gRPC C++ with the generated stubs, in one thread over one completion queue.
//
//   load_client --mode=unary|alone|bidi|buffered|consume --address=HOST:PORT --request=FILE --seconds=S [--warm=S]
//               [--window=N] [--max_requests=N] [--end_offset=N]
//
// unary: N calls under way. alone: one call at a time, with its latency. bidi: one stream with N requests unanswered,
// each written by itself. buffered: the same, telling gRPC to hold a message back while the next follows at once.
// consume: the request's stream read to its end, again and again; with an end offset its last record is checked.
// Ends with one line of JSON, or with status 1 and why.

#include <cstdio>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include "common.h"
#include "takhin/v1/takhin.grpc.pb.h"

namespace {

using bench::fail;
using bench::now_ns;
using bench::Run;
using grpc::CompletionQueue;
using takhin::v1::ConsumeMessagesResponse;
using takhin::v1::ProduceMessageRequest;
using takhin::v1::ProduceMessageResponse;
using takhin::v1::TakhinService;

int64_t records_of(const ProduceMessageResponse& response) {
  if (response.code() != 0 || !response.error().empty()) fail("refused: " + response.reason() + " " + response.error());
  if (response.record_count() < 1) fail("an answer for no record");
  return response.record_count();
}

void check(const grpc::Status& status) {
  if (!status.ok()) fail("status " + std::to_string(status.error_code()) + ": " + status.error_message());
}

struct Call {
  grpc::ClientContext context;
  ProduceMessageResponse response;
  grpc::Status status;
  int64_t from_ns = 0;
  std::unique_ptr<grpc::ClientAsyncResponseReader<ProduceMessageResponse>> reader;
};

void unary(TakhinService::Stub* stub, const ProduceMessageRequest& request, int window, Run* run) {
  CompletionQueue queue;
  int64_t sent = 0;
  int under_way = 0;
  auto start = [&] {
    auto* call = new Call;
    call->from_ns = now_ns();
    call->reader = stub->AsyncProduceMessage(&call->context, request, &queue);
    call->reader->Finish(&call->response, &call->status, call);
    ++sent;
    ++under_way;
  };
  while (under_way < window && !run->full(sent)) start();
  void* tag = nullptr;
  bool ok = false;
  while (under_way && queue.Next(&tag, &ok)) {
    std::unique_ptr<Call> call(static_cast<Call*>(tag));
    check(call->status);
    --under_way;
    int64_t at_ns = now_ns();
    run->note(at_ns, 1, records_of(call->response), 0);
    if (window == 1) run->note_latency(call->from_ns, at_ns);
    if (!run->over(at_ns, sent)) start();
  }
}

// As most programs call: blocking.
void alone(TakhinService::Stub* stub, const ProduceMessageRequest& request, Run* run) {
  for (int64_t sent = 0; !run->over(now_ns(), sent); ++sent) {
    grpc::ClientContext context;
    ProduceMessageResponse response;
    int64_t from_ns = now_ns();
    check(stub->ProduceMessage(&context, request, &response));
    int64_t at_ns = now_ns();
    run->note(at_ns, 1, records_of(response), 0);
    run->note_latency(from_ns, at_ns);
  }
}

void bidi(TakhinService::Stub* stub, const ProduceMessageRequest& request, int window, bool buffered, Run* run) {
  enum : intptr_t { kStarted = 1, kRead, kWritten, kClosed, kFinished };
  auto tag_of = [](intptr_t number) { return reinterpret_cast<void*>(number); };
  CompletionQueue queue;
  grpc::ClientContext context;
  grpc::Status status;
  ProduceMessageResponse response;
  auto stream = stub->AsyncProduceMessageStream(&context, &queue, tag_of(kStarted));
  int64_t sent = 0, answered = 0;
  bool writing = true, closing = false;
  auto write = [&] {
    if (writing || closing) return;
    if (run->over(now_ns(), sent)) {
      closing = true;
      stream->WritesDone(tag_of(kClosed));
      return;
    }
    if (sent - answered >= window) return;
    grpc::WriteOptions options;
    // The last that the window allows is not held back, or both ends would wait.
    if (buffered && sent - answered + 1 < window && !run->full(sent + 1)) options.set_buffer_hint();
    writing = true;
    ++sent;
    stream->Write(request, options, tag_of(kWritten));
  };
  void* tag = nullptr;
  bool ok = false;
  while (queue.Next(&tag, &ok)) {
    switch (reinterpret_cast<intptr_t>(tag)) {
      case kStarted:
        if (!ok) fail("the stream did not begin");
        writing = false;
        stream->Read(&response, tag_of(kRead));
        write();
        break;
      case kWritten:
        if (!ok) closing = true;
        writing = false;
        write();
        break;
      case kRead:
        if (!ok) {
          stream->Finish(&status, tag_of(kFinished));
          break;
        }
        ++answered;
        run->note(now_ns(), 1, records_of(response), 0);
        stream->Read(&response, tag_of(kRead));
        write();
        break;
      case kClosed:
        break;
      case kFinished:
        check(status);
        if (answered != sent) fail("the stream ended with requests unanswered");
        return;
    }
  }
}

void consume(grpc::GenericStub* stub, const std::string& request, int64_t end_offset, Run* run) {
  CompletionQueue queue;
  auto next = [&] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  do {
    grpc::ClientContext context;
    auto stream = stub->PrepareCall(&context, "/takhin.v1.TakhinService/ConsumeMessages", &queue);
    stream->StartCall(nullptr);
    if (!next()) fail("the stream did not begin");
    grpc::Slice slice(request);
    stream->WriteLast(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions(), nullptr);
    if (!next()) fail("the request was not sent");
    grpc::ByteBuffer response, last;
    for (stream->Read(&response, nullptr); next(); stream->Read(&response, nullptr)) {
      run->note(now_ns(), 1, 0, static_cast<int64_t>(response.Length()));
      last.Swap(&response);
      response.Clear();
    }
    grpc::Status status;
    stream->Finish(&status, nullptr);
    next();
    check(status);
    if (end_offset > 0) {
      ConsumeMessagesResponse parsed;
      if (!grpc::SerializationTraits<ConsumeMessagesResponse>::Deserialize(&last, &parsed).ok()) fail("not a response");
      if (parsed.records_size() == 0 || parsed.records(parsed.records_size() - 1).offset() != end_offset - 1) {
        fail("a read did not end with the log's last record");
      }
      run->found.records += end_offset;
    }
  } while (!run->over(now_ns(), 0));
}

}  // namespace

int main(int argc, char** argv) {
  bench::Flags flags(argc, argv);
  std::string mode = flags.text("mode");
  std::string body = bench::read_file(flags.text("request"));
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(10 << 20);
  arguments.SetInt("grpc.enable_http_proxy", 0);
  auto channel =
      grpc::CreateCustomChannel(flags.text("address"), grpc::InsecureChannelCredentials(), arguments);
  if (!channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(10))) fail("no connection");
  auto stub = TakhinService::NewStub(channel);
  int window = static_cast<int>(flags.number("window", 64));
  Run run(flags.seconds("warm", 0.2), flags.seconds("seconds", 1), flags.number("max_requests", INT64_MAX));
  if (mode == "consume") {
    grpc::GenericStub generic(channel);
    consume(&generic, body, flags.number("end_offset", 0), &run);
  } else {
    ProduceMessageRequest request;
    if (!request.ParseFromString(body)) fail("not a ProduceMessageRequest");
    if (mode == "unary") {
      unary(stub.get(), request, window, &run);
    } else if (mode == "alone") {
      alone(stub.get(), request, &run);
    } else if (mode == "bidi" || mode == "buffered") {
      bidi(stub.get(), request, window, mode == "buffered", &run);
    } else {
      fail("no such mode: " + mode);
    }
  }
  run.end().print();
  return 0;
}
