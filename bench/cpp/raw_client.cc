// Load by HTTP/2 frames on plain sockets: a client that costs next to nothing and coalesces all it writes, so that the
// server is what is measured. Not a client for anything else: it sends what it is told to and looks at the answers.
//
//   raw_client --mode=bidi|alone|consume --address=HOST:PORT --request=FILE[,FILE...] --seconds=S [--warm=S]
//              [--window=N] [--connections=N] [--streams=N] [--max_requests=N] [--in_order=1] [--end_offset=N]
//
// bidi: produce streams, so many on each connection, each with N requests unanswered; a stream sends one of the files
// over and over, they are dealt out in turn. As many messages as windows and N allow go out in one write, in frames as
// large as the peer takes, and messages may lie across frames. Each answer is parsed: it must name no error; with
// in_order its offset must follow the one before. With a window of 1 each answer's latency counts. alone: unary
// produce, one call at a time, with its latency. consume: one stream of responses read to its end, again and again;
// with an end offset its last record is checked.
// Flow control is honoured both ways. Ends with one line of JSON, or with status 1 and why.

#include <poll.h>

#include <memory>
#include <string>
#include <vector>

#include "common.h"
#include "raw_connection.h"

namespace {

using bench::Connection;
using bench::fail;
using bench::Fields;
using bench::now_ns;
using bench::Run;
using bench::Stream;

const std::string kService = "/takhin.v1.TakhinService/";

// Prefix and message, repeated so often that any frame can be taken out of it.
struct Message {
  explicit Message(const std::string& body) {
    std::string one(1, '\0');
    for (int shift = 24; shift >= 0; shift -= 8) one.push_back(static_cast<char>(body.size() >> shift));
    one += body;
    size = one.size();
    while (repeated.size() < one.size() + bench::kMostFrame) repeated += one;
  }
  size_t size = 0;
  std::string repeated;
};

std::vector<Message> read_messages(const std::string& paths) {
  std::vector<Message> messages;
  for (size_t from = 0, comma = 0; comma != std::string::npos; from = comma + 1) {
    comma = paths.find(',', from);
    messages.emplace_back(bench::read_file(paths.substr(from, comma - from)));
  }
  return messages;
}

void wait_for(std::vector<std::unique_ptr<Connection>>& connections) {
  std::vector<pollfd> polled;
  for (auto& each : connections) {
    polled.push_back({each->descriptor(), static_cast<short>(POLLIN | (each->blocked() ? POLLOUT : 0)), 0});
  }
  int ready = poll(polled.data(), polled.size(), 10'000);
  if (ready == 0) fail("nothing came for 10 s");
  for (size_t index = 0; index < polled.size(); ++index) {
    if (polled[index].revents & POLLOUT) connections[index]->write_rest();
    if (polled[index].revents & (POLLIN | POLLHUP | POLLERR)) connections[index]->receive();
  }
}

class Produce : public bench::Sink {
 public:
  Produce(Run* run, bool in_order, bool with_latency) : run_(run), in_order_(in_order), with_latency_(with_latency) {}

  void message(Stream* stream, const uint8_t* data, size_t size) override {
    Fields answer = bench::parse(data, size);
    if (answer.value[7] || !answer.text[5].empty()) {
      fail("refused: " + std::string(answer.text[8]) + " " + std::string(answer.text[5]));
    }
    auto records = static_cast<int64_t>(answer.value[6]);
    if (records < 1) fail("an answer for no record");
    auto offset = static_cast<int64_t>(answer.value[3]);
    if (in_order_ && stream->next_offset >= 0 && offset != stream->next_offset) fail("answers are out of order");
    stream->next_offset = offset + records;
    ++stream->answered;
    if (stream->answered > stream->sent) fail("more answers than requests");
    if (with_latency_) run_->note_latency(stream->from_ns, now_ns());
    ++requests;
    this->records += records;
  }

  // Once for all that came at one time.
  void note() {
    if (requests) run_->note(at_ns, requests, records, 0);
    requests = records = 0;
  }

  int64_t at_ns = 0, requests = 0, records = 0;

 private:
  Run* run_;
  bool in_order_, with_latency_;
};

void bidi(const bench::Flags& flags, const std::vector<Message>& messages, Run* run) {
  int64_t window = flags.number("window", 256), sent = 0;
  size_t opened = 0;
  Produce sink(run, flags.number("in_order", 0), window == 1);
  std::vector<std::unique_ptr<Connection>> connections;
  for (int64_t count = flags.number("connections", 1); count > 0; --count) {
    connections.push_back(
        std::make_unique<Connection>(flags.text("address"), kService + "ProduceMessageStream", &sink));
    for (int64_t streams = flags.number("streams", 1); streams > 0; --streams) {
      connections.back()->open()->message = opened++ % messages.size();
    }
  }
  size_t open = 1;
  while (open) {
    open = 0;
    sink.at_ns = now_ns();
    for (auto& connection : connections) {
      for (auto& [id, stream] : connection->streams()) {
        if (stream->ended && !stream->half_closed) fail("the server ended a stream");
        open += !stream->ended;
        if (stream->half_closed) continue;
        int64_t room = window - (stream->sent - stream->answered);
        if (room > 0 && !run->over(sink.at_ns, sent)) {
          stream->sent += room;
          sent += room;
          stream->from_ns = sink.at_ns;
        }
        const Message& message = messages[stream->message];
        connection->send_messages(
            stream.get(), message.repeated, message.size, stream->sent * static_cast<int64_t>(message.size), false);
        if (run->over(sink.at_ns, sent) && stream->answered == stream->sent) connection->end_requests(stream.get());
      }
      connection->flush();
    }
    if (!open) break;
    wait_for(connections);
    sink.at_ns = now_ns();
    sink.note();
  }
}

void alone(const bench::Flags& flags, const std::vector<Message>& messages, Run* run) {
  Produce sink(run, false, true);
  std::vector<std::unique_ptr<Connection>> connections;
  connections.push_back(std::make_unique<Connection>(flags.text("address"), kService + "ProduceMessage", &sink));
  Connection& connection = *connections[0];
  const Message& message = messages[0];
  for (int64_t sent = 0; !run->over(now_ns(), sent); ++sent) {
    Stream* stream = connection.open();
    stream->sent = 1;
    stream->from_ns = now_ns();
    while (!stream->ended) {
      if (!stream->half_closed) {
        connection.send_messages(stream, message.repeated, message.size, static_cast<int64_t>(message.size), true);
      }
      connection.flush();
      wait_for(connections);
      sink.at_ns = now_ns();
      sink.note();
    }
    if (stream->answered != 1) fail("a call ended without an answer");
    connection.streams().clear();
  }
}

class Consumed : public bench::Sink {
 public:
  void message(Stream*, const uint8_t* data, size_t size) override {
    ++responses;
    bytes += static_cast<int64_t>(size);
    if (!looks) return;
    // The last record (field 4) and its offset (field 5).
    std::string_view record = bench::parse(data, size).text[4];
    if (record.empty()) return;
    last_offset = static_cast<int64_t>(
        bench::parse(reinterpret_cast<const uint8_t*>(record.data()), record.size()).value[5]);
  }
  int64_t responses = 0, bytes = 0, last_offset = -1;
  bool looks = false;
};

void consume(const bench::Flags& flags, const std::vector<Message>& messages, Run* run) {
  int64_t end_offset = flags.number("end_offset", 0);
  Consumed sink;
  sink.looks = end_offset > 0;
  std::vector<std::unique_ptr<Connection>> connections;
  connections.push_back(std::make_unique<Connection>(flags.text("address"), kService + "ConsumeMessages", &sink));
  Connection& connection = *connections[0];
  const Message& message = messages[0];
  do {
    sink.last_offset = -1;
    Stream* stream = connection.open();
    while (!stream->ended) {
      if (!stream->half_closed) {
        connection.send_messages(stream, message.repeated, message.size, static_cast<int64_t>(message.size), true);
      }
      connection.flush();
      wait_for(connections);
      if (sink.responses) run->note(now_ns(), sink.responses, 0, sink.bytes);
      sink.responses = sink.bytes = 0;
    }
    connection.streams().clear();
    if (end_offset > 0) {
      if (sink.last_offset != end_offset - 1) fail("a read did not end with the log's last record");
      run->found.records += end_offset;
    }
  } while (!run->over(now_ns(), 0));
}

}  // namespace

int main(int argc, char** argv) {
  bench::Flags flags(argc, argv);
  std::string mode = flags.text("mode");
  std::vector<Message> messages = read_messages(flags.text("request"));
  Run run(flags.seconds("warm", 0.2), flags.seconds("seconds", 1), flags.number("max_requests", INT64_MAX));
  if (mode == "bidi") {
    bidi(flags, messages, &run);
  } else if (mode == "alone") {
    alone(flags, messages, &run);
  } else if (mode == "consume") {
    consume(flags, messages, &run);
  } else {
    fail("no such mode: " + mode);
  }
  run.end().print();
  return 0;
}
