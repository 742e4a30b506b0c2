// The cases of tests/conformance from C++: one line each, PASS NAME or FAIL NAME REASON.
// Arguments: name=value each, as of Addresses in server.py; only=NAME,NAME for some of the cases.
// Messages are grpc::ByteBuffer; the broker is called by the stub that protoc makes of takhin.proto.

#include <grpcpp/grpcpp.h>
#include <grpcpp/support/client_callback.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

// One unit to compile.
#include "takhin/v1/takhin.grpc.pb.cc"
#include "takhin/v1/takhin.pb.cc"

using grpc::ByteBuffer;
using grpc::ClientContext;
using grpc::Status;
using grpc::StatusCode;
using std::string;
using std::chrono::milliseconds;
using std::chrono::seconds;
using RpcMethod = grpc::internal::RpcMethod;
using Channel = std::shared_ptr<grpc::Channel>;
using Bidi = grpc::ClientReaderWriter<ByteBuffer, ByteBuffer>;
using Reader = grpc::ClientReader<ByteBuffer>;
namespace pb = takhin::v1;

namespace {

const size_t kMib = 1 << 20, kLimitBytes = 5 * kMib, kFloodBytes = 64 * 1024;
std::map<string, string> at;
std::vector<std::pair<string, std::function<void()>>> cases;

struct Case {
  Case(const char* name, std::function<void()> run) { cases.emplace_back(name, std::move(run)); }
};
#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)
#define CASE(name) \
  void JOIN(run_, __LINE__)(); \
  Case JOIN(case_, __LINE__)(name, JOIN(run_, __LINE__)); \
  void JOIN(run_, __LINE__)()

[[noreturn]] void fail(const string& why) { throw std::runtime_error(why); }

template <class A, class B>
void expect(const A& found, const B& wanted, const string& what = "it") {
  if (found == wanted) return;
  std::ostringstream out;
  out << what << " is " << found << ", not " << wanted;
  fail(out.str().substr(0, 400));
}

string name_of_call() {
  static std::atomic<int> number{0};
  return "cpp-" + std::to_string(std::random_device{}()) + "-" + std::to_string(++number);
}

ByteBuffer buffer(const string& bytes) {
  grpc::Slice slice(bytes);
  return ByteBuffer(&slice, 1);
}

string text(const ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  string out;
  // Nothing is in a buffer of no bytes.
  if (!buffer.Valid() || !buffer.Dump(&slices).ok()) return out;
  for (const auto& each : slices) out.append(reinterpret_cast<const char*>(each.begin()), each.size());
  return out;
}

string file(const string& name) {
  std::ifstream in(at["directory"] + "/" + name);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

Channel connect(const string& address, std::shared_ptr<grpc::ChannelCredentials> how = nullptr,
                const std::map<string, int>& more = {}) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  for (const auto& [name, value] : more) arguments.SetInt(name, value);
  return grpc::CreateCustomChannel(address, how ? how : grpc::InsecureChannelCredentials(), arguments);
}

Channel plain() { return connect(at["plain"]); }

struct Call {
  ClientContext context;
  Status status;
  string answer;
  explicit Call(milliseconds timeout = seconds(60)) {
    if (timeout.count()) context.set_deadline(std::chrono::system_clock::now() + timeout);
  }
  string trailing(const string& key) {
    const auto& found = context.GetServerTrailingMetadata();
    auto it = found.find(key);
    return it == found.end() ? "" : string(it->second.data(), it->second.size());
  }
};

string path(const string& name) { return name[0] == '/' ? name : "/conformance.v1.Conformance/" + name; }

void unary(const Channel& channel, const string& name, const string& request, Call& call) {
  const string full = path(name);
  RpcMethod method(full.c_str(), RpcMethod::NORMAL_RPC, channel);
  ByteBuffer answer;
  call.status = grpc::internal::BlockingUnaryCall(channel.get(), method, &call.context, buffer(request), &answer);
  if (call.status.ok()) call.answer = text(answer);
}

string ok(const Channel& channel, const string& name, const string& request = "") {
  Call call;
  unary(channel, name, request, call);
  if (!call.status.ok()) fail(name + ": " + std::to_string(call.status.error_code()) + " " + call.status.error_message());
  return call.answer;
}

void refused(const Channel& channel, const string& name, const string& request, StatusCode code,
             milliseconds timeout = seconds(60)) {
  Call call(timeout);
  unary(channel, name, request, call);
  expect(call.status.error_code(), code, "the code (" + call.status.error_message() + ")");
}

void lives(const Channel& channel) { expect(ok(channel, "Echo", "still"), "still"); }

std::unique_ptr<Reader> stream(const Channel& channel, const string& name, const string& request, Call& call) {
  static std::mutex mutex;
  static std::set<string> kept;
  std::lock_guard<std::mutex> lock(mutex);
  RpcMethod method(kept.insert(path(name)).first->c_str(), RpcMethod::SERVER_STREAMING, channel);
  return std::unique_ptr<Reader>(
      grpc::internal::ClientReaderFactory<ByteBuffer>::Create(channel.get(), method, &call.context, buffer(request)));
}

std::unique_ptr<Bidi> bidi(const Channel& channel, const string& name, Call& call) {
  static std::mutex mutex;
  static std::set<string> kept;
  std::lock_guard<std::mutex> lock(mutex);
  RpcMethod method(kept.insert(path(name)).first->c_str(), RpcMethod::BIDI_STREAMING, channel);
  return std::unique_ptr<Bidi>(grpc::internal::ClientReaderWriterFactory<ByteBuffer, ByteBuffer>::Create(
      channel.get(), method, &call.context));
}

template <class Stream>
string read(Stream& stream) {
  ByteBuffer message;
  if (!stream.Read(&message)) fail("the stream has ended");
  return text(message);
}

template <class Stream>
std::vector<string> rest(Stream& stream) {
  std::vector<string> found;
  ByteBuffer message;
  while (stream.Read(&message)) found.push_back(text(message));
  return found;
}

template <class Stream>
void ends(Stream& stream, StatusCode code = StatusCode::OK, const string& told = "") {
  Status status = stream.Finish();
  expect(status.error_code(), code, "the code (" + status.error_message() + ")");
  if (!told.empty()) expect(status.error_message(), told);
}

string number(size_t value) { return std::to_string(value); }

string all_bytes(size_t size) {
  string out(size, '\0');
  for (size_t i = 0; i < size; ++i) out[i] = static_cast<char>(i % 251);
  return out;
}

template <class Condition>
void until(Condition condition, const string& what) {
  for (int i = 0; i < 3000; ++i) {
    if (condition()) return;
    std::this_thread::sleep_for(milliseconds(10));
  }
  fail(what + " did not come true");
}

void was_cancelled(const Channel& channel, const string& name) {
  expect(ok(channel, "AwaitEnd", name).substr(0, 9), "cancelled", "the handler");
}

// Messages

CASE("unary-echo") { expect(ok(plain(), "Echo", "hello"), "hello"); }
CASE("unary-empty") { expect(ok(plain(), "Echo", ""), ""); }
CASE("unary-4mib") {
  const string request = all_bytes(4 * kMib);
  expect(ok(plain(), "Echo", request) == request, true);
}
CASE("unary-sizes") {
  auto channel = plain();
  std::vector<size_t> sizes{1, 2, 131072, 262139, 262144, kMib - 5, kMib, kMib + 1};
  for (size_t size = 16370; size < 16392; ++size) sizes.push_back(size);
  for (size_t size = 65520; size < 65545; ++size) sizes.push_back(size);
  for (size_t size : sizes) expect(ok(channel, "Echo", all_bytes(size)) == all_bytes(size), true, number(size));
}
CASE("stream-count") {
  Call call;
  auto reader = stream(plain(), "Count", "1000 100 0", call);
  auto found = rest(*reader);
  expect(found.size(), 1000u, "the number of messages");
  for (size_t i = 0; i < 1000; ++i) expect(found[i].substr(0, number(i).size() + 1), number(i) + ".");
  ends(*reader);
}
CASE("stream-empty") {
  Call call;
  auto reader = stream(plain(), "Count", "0 0 0", call);
  expect(rest(*reader).size(), 0u);
  ends(*reader);
}
CASE("stream-large") {
  Call call;
  auto reader = stream(plain(), "Count", "32 " + number(kMib) + " 0", call);
  auto found = rest(*reader);
  expect(found.size(), 32u);
  for (size_t i = 0; i < 32; ++i) {
    expect(found[i].size(), kMib);
    expect(found[i].substr(0, number(i).size() + 1), number(i) + ".");
  }
  ends(*reader);
}
CASE("bidi-chat") {
  Call call;
  auto chat = bidi(plain(), "Chat", call);
  for (int i = 0; i < 200; ++i) {
    chat->Write(buffer(number(i)));
    expect(read(*chat), number(i));
  }
  chat->WritesDone();
  expect(rest(*chat).size(), 0u);
  ends(*chat);
}
CASE("bidi-half-close") {
  Call call;
  auto hold = bidi(plain(), "Hold", call);
  std::vector<string> sent;
  for (int i = 0; i < 200; ++i) {
    sent.push_back(string(i % 50, 'h') + (i % 50 ? number(i) : ""));
    hold->Write(buffer(sent.back()));
  }
  hold->WritesDone();
  expect(rest(*hold) == sent, true, "the same messages");
  ends(*hold);
}
CASE("bidi-collect") {
  Call call;
  auto collect = bidi(plain(), "Collect", call);
  for (int i = 0; i < 2000; ++i) collect->Write(buffer(string(1000, 'm')));
  collect->WritesDone();
  expect(read(*collect), "2000 2000000");
  expect(rest(*collect).size(), 0u);
  ends(*collect);
}
CASE("interleaved-streams") {
  auto channel = plain();
  std::vector<std::unique_ptr<Call>> calls;
  std::vector<std::unique_ptr<Bidi>> streams;
  for (int i = 0; i < 50; ++i) {
    calls.push_back(std::make_unique<Call>());
    streams.push_back(bidi(channel, "Chat", *calls.back()));
  }
  for (int turn = 0; turn < 20; ++turn) {
    for (int i = 0; i < 50; ++i) streams[i]->Write(buffer(number(turn) + "/" + number(i) + string(i * 20, '.')));
    for (int i = 0; i < 50; ++i) expect(read(*streams[i]), number(turn) + "/" + number(i) + string(i * 20, '.'));
  }
  for (auto& each : streams) {
    each->WritesDone();
    ends(*each);
  }
}
CASE("concurrent-1000") {
  auto channel = plain();
  lives(channel);
  struct One {
    Call call;
    ByteBuffer request, answer;
  };
  std::vector<std::unique_ptr<One>> calls;
  std::mutex mutex;
  std::condition_variable all_done;
  int open = 1000;
  const string sleep = path("Sleep"), echo = path("Echo");
  RpcMethod sleeping(sleep.c_str(), RpcMethod::NORMAL_RPC, channel), echoing(echo.c_str(), RpcMethod::NORMAL_RPC, channel);
  for (int i = 0; i < 1000; ++i) {
    calls.push_back(std::make_unique<One>());
    One* one = calls.back().get();
    one->request = buffer(i % 2 ? number(i) : "300");
    grpc::internal::CallbackUnaryCall<ByteBuffer, ByteBuffer>(
        channel.get(), i % 2 ? echoing : sleeping, &one->call.context, &one->request, &one->answer, [&, one](Status status) {
          std::lock_guard<std::mutex> lock(mutex);
          one->call.status = status;
          if (!--open) all_done.notify_one();
        });
  }
  std::unique_lock<std::mutex> lock(mutex);
  all_done.wait(lock, [&] { return !open; });
  for (int i = 0; i < 1000; ++i) {
    if (!calls[i]->call.status.ok()) fail(calls[i]->call.status.error_message());
    expect(text(calls[i]->answer), i % 2 ? number(i) : "slept");
  }
}

// Status

CASE("error-unary") {
  Call call;
  unary(plain(), "Fail", "TOPIC_NOT_FOUND\nno such thing", call);
  expect(call.status.error_code(), StatusCode::NOT_FOUND);
  expect(call.status.error_message(), "no such thing");
}
CASE("error-codes") {
  auto channel = plain();
  const std::map<string, StatusCode> codes{
      {"MALFORMED_REQUEST", StatusCode::INVALID_ARGUMENT}, {"TOPIC_NOT_FOUND", StatusCode::NOT_FOUND},
      {"TOPIC_EXISTS", StatusCode::ALREADY_EXISTS}, {"OFFSET_OUT_OF_RANGE", StatusCode::OUT_OF_RANGE},
      {"GROUP_HAS_MEMBERS", StatusCode::FAILED_PRECONDITION}, {"CALL_LIMIT", StatusCode::RESOURCE_EXHAUSTED},
      {"DRAINING", StatusCode::UNAVAILABLE}, {"CORRUPT_BATCH", StatusCode::DATA_LOSS},
      {"PRODUCER_FENCED", StatusCode::ABORTED}, {"ACK_TIMEOUT", StatusCode::DEADLINE_EXCEEDED},
      {"ACCESS_DENIED", StatusCode::PERMISSION_DENIED}, {"CREDENTIALS_MISSING", StatusCode::UNAUTHENTICATED},
      {"INTERNAL_ERROR", StatusCode::INTERNAL}};
  for (const auto& [reason, code] : codes) refused(channel, "Fail", reason + "\ntext", code);
}
CASE("error-after-messages") {
  Call call;
  auto reader = stream(plain(), "Count", "10 10000 0 RECORD_TOO_LARGE", call);
  expect(rest(*reader).size(), 10u);
  ends(*reader, StatusCode::RESOURCE_EXHAUSTED, "after the messages");
}
CASE("error-while-sending") {
  auto channel = plain();
  Call call;
  auto failing = bidi(channel, "FailAfterFirst", call);
  while (failing->Write(buffer(string(1000, 'x')))) {
  }
  ends(*failing, StatusCode::ABORTED, "after the first message");
  lives(channel);
}
CASE("message-percent") {
  auto channel = plain();
  string many;
  for (int i = 0; i < 50; ++i) many += "😀";
  const std::map<string, string> texts{
      {"100% 日本語 – ß €", "100% 日本語 – ß €"}, {"%", "%"}, {"%41 %zz", "%41 %zz"}, {many, many},
      {" leading and trailing ", " leading and trailing "}, {"tab\tline\nfeed\x7f", "tab\\tline\\nfeed\\x7f"}};
  for (const auto& [sent, told] : texts) {
    Call call;
    unary(channel, "Fail", "TOPIC_EXISTS\n" + sent, call);
    expect(call.status.error_code(), StatusCode::ALREADY_EXISTS);
    expect(call.status.error_message(), told);
  }
}
CASE("status-details") {
  Call call;
  unary(plain(), "Fail", "TOPIC_EXISTS\nschön", call);
  const string details = call.status.error_details();
  // google.rpc.Status: code (1), message (2), details (3).
  expect(details.substr(0, 10), string("\x08\x06\x12\x06", 4) + "schön");
  for (const char* part : {"type.googleapis.com/google.rpc.ErrorInfo", "TOPIC_EXISTS", "takhin", "planted", "yes"})
    if (details.find(part) == string::npos) fail(string("the details are without ") + part);
}
CASE("unknown-method") {
  auto channel = plain();
  refused(channel, "Nothing", "", StatusCode::UNIMPLEMENTED);
  lives(channel);
}
CASE("unknown-service") {
  auto channel = plain();
  refused(channel, "/none.v1.None/Echo", "", StatusCode::UNIMPLEMENTED);
  lives(channel);
}

// Metadata

void metadata_arrives(const std::vector<std::pair<string, string>>& sent) {
  Call call;
  for (const auto& [key, value] : sent) call.context.AddMetadata(key, value);
  unary(plain(), "Metadata", "", call);
  if (!call.status.ok()) fail(call.status.error_message());
  for (const auto& [key, value] : std::map<string, string>(sent.rbegin(), sent.rend())) {
    std::ostringstream hex;
    for (unsigned char byte : value) hex << "0123456789abcdef"[byte >> 4] << "0123456789abcdef"[byte & 15];
    if (("\n" + call.answer).find("\n" + key + "=" + hex.str() + "\n") == string::npos) fail(key + " did not arrive");
  }
}
CASE("metadata-ascii") {
  string printable;
  for (char c = 0x21; c < 0x7f; ++c) printable += c;
  metadata_arrives({{"x-one", "1"}, {"x-long", string(3000, 'v')}, {"x-printable", printable}, {"x-twice", "a"}, {"x-twice", "b"}});
}
CASE("metadata-binary") {
  string bytes;
  for (int i = 0; i < 256; ++i) bytes += static_cast<char>(i);
  metadata_arrives({{"x-all-bin", bytes}, {"x-one-bin", "\xff"}, {"x-two-bin", "\xff\xff"}, {"x-three-bin", "\xff\xff\xff"},
                    {"x-nul-bin", string(1, '\0')}, {"x-line-bin", "\r\n"}, {"x-comma-bin", ","}});
}
CASE("metadata-too-large") {
  auto channel = plain();
  lives(channel);
  Call call;
  call.context.AddMetadata("x-large", string(40000, 'l'));
  unary(channel, "Echo", "", call);
  expect(call.status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  lives(channel);
}
CASE("request-id") {
  auto channel = plain();
  Call call, failed, unnamed;
  call.context.AddMetadata("x-request-id", "mine-1");
  unary(channel, "RequestId", "", call);
  expect(call.answer, "mine-1");
  expect(call.trailing("x-request-id"), "mine-1");
  failed.context.AddMetadata("x-request-id", "mine-2");
  unary(channel, "Fail", "TOPIC_EXISTS\n", failed);
  expect(failed.trailing("x-request-id"), "mine-2");
  unary(channel, "Fail", "TOPIC_EXISTS\n", unnamed);
  expect(unnamed.trailing("x-request-id").empty(), false, "there is no request id");
}

// Time and cancellation

CASE("deadline") {
  auto channel = plain();
  lives(channel);
  const string one = name_of_call(), two = name_of_call();
  refused(channel, "Hang", one, StatusCode::DEADLINE_EXCEEDED, milliseconds(500));
  Call call(milliseconds(500));
  auto reader = stream(channel, "HangStream", two, call);
  expect(read(*reader), "begun");
  expect(rest(*reader).size(), 0u);
  ends(*reader, StatusCode::DEADLINE_EXCEEDED);
  was_cancelled(channel, one);
  was_cancelled(channel, two);
}
CASE("deadline-known") {
  auto channel = plain();
  const int left_ms = std::stoi(ok(channel, "Remaining"));
  // Clients round what they send up, by a tenth of a second at this length.
  if (left_ms <= 0 || left_ms > 60200) fail(number(left_ms));
  Call call(milliseconds(0));
  unary(channel, "Remaining", "", call);
  expect(call.answer, "none");
}
CASE("cancel-unary") {
  auto channel = plain();
  const string name = name_of_call();
  Call call;
  std::thread canceller([&] {
    try {
      until([&] { return ok(channel, "Journal", name) == "begun"; }, "the call's begin");
    } catch (const std::exception&) {
    }
    call.context.TryCancel();
  });
  unary(channel, "Hang", name, call);
  canceller.join();
  expect(call.status.error_code(), StatusCode::CANCELLED);
  was_cancelled(channel, name);
}
CASE("cancel-stream") {
  auto channel = plain();
  const string name = name_of_call();
  Call call;
  auto reader = stream(channel, "HangStream", name, call);
  expect(read(*reader), "begun");
  call.context.TryCancel();
  rest(*reader);
  ends(*reader, StatusCode::CANCELLED);
  was_cancelled(channel, name);
}
CASE("cancel-bidi") {
  auto channel = plain();
  const string name = name_of_call();
  Call call;
  auto hanging = bidi(channel, "HangBidi", call);
  hanging->Write(buffer(name));
  expect(read(*hanging), "begun");
  call.context.TryCancel();
  rest(*hanging);
  ends(*hanging, StatusCode::CANCELLED);
  was_cancelled(channel, name);
}

// Compression, limits, flow control

CASE("gzip-request") {
  auto channel = plain();
  for (auto how : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE})
    for (const string& message : {string(), string("short"), string(kMib, 'z'), all_bytes(256000)}) {
      Call call;
      call.context.set_compression_algorithm(how);
      unary(channel, "Echo", message, call);
      if (!call.status.ok()) fail(call.status.error_message());
      expect(call.answer == message, true);
    }
  Call call;
  call.context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
  auto chat = bidi(channel, "Chat", call);
  for (int i = 0; i < 20; ++i) {
    chat->Write(buffer(string(5000, 'a' + i)));
    expect(read(*chat), string(5000, 'a' + i));
  }
  chat->WritesDone();
  ends(*chat);
}
CASE("gzip-response") {
  auto channel = connect(at["gzip"]);
  for (size_t size : {size_t(0), size_t(1), size_t(100), 4 * kMib})
    expect(ok(channel, "Big", number(size)) == string(size, 'b'), true);
  Call call;
  auto reader = stream(channel, "Count", "100 5000 0", call);
  expect(rest(*reader).size(), 100u);
  ends(*reader);
}
CASE("limit-request") {
  auto channel = plain();
  expect(ok(channel, "Echo", string(kLimitBytes, 'l')).size(), kLimitBytes);
  refused(channel, "Echo", string(kLimitBytes + 1, 'l'), StatusCode::RESOURCE_EXHAUSTED);
  lives(channel);
  Call call;
  call.context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
  unary(channel, "Echo", string(kLimitBytes + 1, 'l'), call);
  expect(call.status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  lives(channel);
}
CASE("limit-response") {
  auto channel = plain();
  expect(ok(channel, "Big", number(kLimitBytes)).size(), kLimitBytes);
  refused(channel, "Big", number(kLimitBytes + 1), StatusCode::RESOURCE_EXHAUSTED);
  lives(channel);
}
CASE("slow-reader") {
  auto channel = plain();
  const string name = name_of_call();
  Call call;
  auto reader = stream(channel, "Flood", name, call);
  expect(read(*reader).size(), kFloodBytes);
  string before;
  int same = 0;
  for (int i = 0; i < 300 && same < 3; ++i) {
    std::this_thread::sleep_for(milliseconds(200));
    const string now = ok(channel, "Journal", name);
    same = now == before ? same + 1 : 0;
    before = now;
  }
  expect(same, 3, "the flood does not stop: looks that found the same");
  const size_t written = std::stoul(before.substr(before.find(' ') + 1));
  // This client opens its window wider the faster the server is.
  if (written * kFloodBytes >= 256 * kMib) fail(number(written) + " messages for a reader that takes none");
  expect(ok(channel, "Big", number(kMib)).size(), kMib);
  for (size_t i = 0; i < written + 200; ++i) expect(read(*reader).size(), kFloodBytes);
  call.context.TryCancel();
  rest(*reader);
  was_cancelled(channel, name);
}

// The life of a connection

CASE("age-drain") {
  auto channel = connect(at["age"]);
  std::mutex mutex;
  std::set<string> peers;
  string problem;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i)
    threads.emplace_back([&] {
      try {
        for (int turn = 0; turn < 10000; ++turn) {
          const string peer = ok(channel, "Peer");
          expect(ok(channel, "Sleep", "5"), "slept");
          std::lock_guard<std::mutex> lock(mutex);
          peers.insert(peer);
          if (peers.size() >= 5 || !problem.empty()) return;
        }
        fail("the connection does not get old");
      } catch (const std::exception& exc) {
        std::lock_guard<std::mutex> lock(mutex);
        problem = exc.what();
      }
    });
  for (auto& each : threads) each.join();
  if (!problem.empty()) fail(problem);
}
CASE("age-stream") {
  auto channel = connect(at["age"]);
  const string first = ok(channel, "Peer");
  Call counting, chatting;
  auto count = stream(channel, "Count", "150 10 10", counting);
  auto chat = bidi(channel, "Chat", chatting);
  chat->Write(buffer("before"));
  expect(read(*chat), "before");
  until([&] { return ok(channel, "Peer") != first; }, "another connection");
  chat->Write(buffer("after"));
  expect(read(*chat), "after");
  chat->WritesDone();
  ends(*chat);
  expect(rest(*count).size(), 150u);
  ends(*count);
}
CASE("graceful-stop") {
  auto control = plain();
  auto channel = connect(ok(control, "Fresh"));
  Call counting;
  auto count = stream(channel, "Count", "100 10 10", counting);
  expect(read(*count).size(), 10u);
  const string name = name_of_call();
  Call sleeping;
  std::thread sleeper([&] { unary(channel, "Sleep", "1000 " + name, sleeping); });
  string problem;
  try {
    until([&] { return !ok(control, "Journal", name).empty(); }, "the call's begin");
    expect(ok(channel, "StopSoon"), "stopping");
  } catch (const std::exception& exc) {
    problem = exc.what();
  }
  sleeper.join();
  if (!problem.empty()) fail(problem);
  expect(sleeping.answer, "slept", sleeping.status.error_message());
  expect(rest(*count).size(), 99u);
  ends(*count);
  refused(channel, "Echo", "x", StatusCode::UNAVAILABLE, seconds(20));
}
CASE("keepalive") {
  auto channel = connect(at["pings"], nullptr, {
      {GRPC_ARG_KEEPALIVE_TIME_MS, 500}, {GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20000},
      {GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0}, {GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1}});
  const string peer = ok(channel, "Peer");
  expect(ok(channel, "Sleep", "3000"), "slept");
  expect(ok(channel, "Peer"), peer, "the connection");
}

// TLS

std::shared_ptr<grpc::ChannelCredentials> credentials(bool with_client) {
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = file("ca.pem");
  if (with_client) {
    options.pem_private_key = file("client.key");
    options.pem_cert_chain = file("client.pem");
  }
  return grpc::SslCredentials(options);
}
CASE("tls") {
  auto channel = connect(at["tls"], credentials(false));
  expect(ok(channel, "Echo", all_bytes(2 * kMib)) == all_bytes(2 * kMib), true);
  expect(ok(channel, "Identity"), "none");
}
CASE("mtls") {
  const string shown = ok(connect(at["mtls"], credentials(true)), "Identity");
  expect(shown == file("client.pem"), true, "the client's certificate");
}
CASE("mtls-missing") {
  refused(connect(at["mtls"], credentials(false)), "Echo", "x", StatusCode::UNAVAILABLE, seconds(20));
}

// The broker

CASE("health-check") {
  auto channel = connect(at["broker"]);
  expect(ok(channel, "/grpc.health.v1.Health/Check"), string("\x08\x01"));
  const string service = "takhin.v1.TakhinService";
  expect(ok(channel, "/grpc.health.v1.Health/Check", string("\x0a") + static_cast<char>(service.size()) + service), string("\x08\x01"));
  refused(channel, "/grpc.health.v1.Health/Check", "\x0a\x04none", StatusCode::NOT_FOUND);
}
CASE("health-watch") {
  Call call;
  auto reader = stream(connect(at["broker"]), "/grpc.health.v1.Health/Watch", "", call);
  expect(read(*reader), string("\x08\x01"));
  call.context.TryCancel();
  rest(*reader);
  ends(*reader, StatusCode::CANCELLED);
}
CASE("reflection") {
  Call call;
  auto info = bidi(connect(at["broker"]), "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", call);
  info->Write(buffer(string("\x3a\x00", 2)));  // list_services
  if (read(*info).find("takhin.v1.TakhinService") == string::npos) fail("the broker's service is not listed");
  const string symbol = "takhin.v1.TakhinService";
  info->Write(buffer(string("\x22") + static_cast<char>(symbol.size()) + symbol));  // file_containing_symbol
  if (read(*info).find("ProduceMessageRequest") == string::npos) fail("the file does not come");
  info->WritesDone();
  ends(*info);
}

string new_topic(pb::TakhinService::Stub& stub) {
  pb::CreateTopicRequest request;
  pb::CreateTopicResponse response;
  request.set_name(name_of_call());
  request.set_num_partitions(1);
  Call call;
  expect(stub.CreateTopic(&call.context, request, &response).ok() && response.success(), true, "the topic");
  return request.name();
}

pb::ProduceMessageRequest record(const string& topic, int index) {
  pb::ProduceMessageRequest request;
  request.set_topic(topic);
  request.mutable_record()->set_value(number(index));
  request.set_required_acks(1);
  return request;
}

void holds(pb::TakhinService::Stub& stub, const string& topic, int count) {
  pb::ConsumeMessagesRequest request;
  request.set_topic(topic);
  request.set_offset(-1);
  request.set_until_end(true);
  Call call;
  auto reader = stub.ConsumeMessages(&call.context, request);
  pb::ConsumeMessagesResponse response;
  int next = 0;
  while (reader->Read(&response))
    for (const auto& each : response.records()) {
      expect(each.offset(), next, "the offset");
      expect(each.value(), number(next++), "the value");
    }
  ends(*reader);
  expect(next, count, "the number of records");
}
CASE("broker-produce-consume") {
  auto stub = pb::TakhinService::NewStub(connect(at["broker"]));
  const string topic = new_topic(*stub);
  for (int i = 0; i < 100; ++i) {
    Call call;
    pb::ProduceMessageResponse response;
    call.status = stub->ProduceMessage(&call.context, record(topic, i), &response);
    if (!call.status.ok()) fail(call.status.error_message());
    expect(response.offset(), i, "the offset");
  }
  holds(*stub, topic, 100);
}
CASE("broker-produce-stream") {
  auto stub = pb::TakhinService::NewStub(connect(at["broker"]));
  const string topic = new_topic(*stub);
  Call call;
  auto produce = stub->ProduceMessageStream(&call.context);
  std::thread writer([&] {
    for (int i = 0; i < 1000; ++i) produce->Write(record(topic, i));
    produce->WritesDone();
  });
  std::vector<int64_t> offsets;
  pb::ProduceMessageResponse response;
  while (produce->Read(&response)) offsets.push_back(response.offset());
  writer.join();
  ends(*produce);
  expect(offsets.size(), 1000u, "the number of answers");
  for (int i = 0; i < 1000; ++i) expect(offsets[i], i, "the offset");
  holds(*stub, topic, 1000);
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const string argument = argv[i];
    at[argument.substr(0, argument.find('='))] = argument.substr(argument.find('=') + 1);
  }
  bool all_well = true;
  for (const auto& [name, run] : cases) {
    if (at.count("only") && ("," + at["only"] + ",").find("," + name + ",") == string::npos) continue;
    try {
      run();
      std::cout << "PASS " << name << std::endl;
    } catch (const std::exception& exc) {
      all_well = false;
      string why = exc.what();
      for (char& each : why)
        if (each == '\n') each = ' ';
      std::cout << "FAIL " << name << " " << why << std::endl;
    }
  }
  return all_well ? 0 : 1;
}
