// One HTTP/2 connection by hand, for raw_client.
#pragma once

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common.h"

namespace bench {

constexpr size_t kFrameHeader = 9, kPrefix = 5;
constexpr uint8_t kData = 0, kHeaders = 1, kReset = 3, kSettings = 4, kPing = 6, kGoAway = 7, kWindowUpdate = 8,
                  kContinuation = 9;
constexpr uint8_t kEndStream = 1, kAck = 1, kEndHeaders = 4, kPadded = 8, kPriority = 32;
constexpr int64_t kOurWindow = 16 << 20;
// A frame no larger than this even where the peer takes larger ones: others have to get their turn.
constexpr size_t kMostFrame = 256 << 10;
constexpr size_t kMostPieces = 256;
constexpr int64_t kLittle = 4 << 10;
// What is read at a time: no more than the processor's cache holds.
constexpr size_t kReadBytes = 256 << 10;

inline void put32(std::string* out, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) out->push_back(static_cast<char>(value >> shift));
}
inline uint32_t get32(const uint8_t* at) {
  return uint32_t{at[0]} << 24 | uint32_t{at[1]} << 16 | uint32_t{at[2]} << 8 | at[3];
}

inline void write_header(char* at, size_t size, uint8_t kind, uint8_t flags, uint32_t stream) {
  at[0] = static_cast<char>(size >> 16);
  at[1] = static_cast<char>(size >> 8);
  at[2] = static_cast<char>(size);
  at[3] = static_cast<char>(kind);
  at[4] = static_cast<char>(flags);
  for (int index = 0; index < 4; ++index) at[5 + index] = static_cast<char>(stream >> (24 - 8 * index));
}

// What of a protobuf message is looked at: the last value of each field with a number below 16.
struct Fields {
  uint64_t value[16] = {};
  std::string_view text[16];
};

inline uint64_t varint(const uint8_t** at, const uint8_t* end) {
  uint64_t value = 0;
  for (int shift = 0; *at < end && shift < 64; shift += 7) {
    uint8_t byte = *(*at)++;
    value |= uint64_t{byte & 0x7Fu} << shift;
    if (byte < 0x80) return value;
  }
  fail("a number in an answer has no end");
}

inline Fields parse(const uint8_t* at, size_t size) {
  Fields found;
  const uint8_t* end = at + size;
  while (at < end) {
    uint64_t tag = varint(&at, end);
    uint64_t number = tag >> 3, value = 0;
    std::string_view text;
    if ((tag & 7) == 0) {
      value = varint(&at, end);
    } else if ((tag & 7) == 2) {
      value = varint(&at, end);
      if (value > static_cast<uint64_t>(end - at)) fail("an answer ends within a field");
      text = {reinterpret_cast<const char*>(at), static_cast<size_t>(value)};
      at += value;
    } else {
      int width = (tag & 7) == 1 ? 8 : (tag & 7) == 5 ? 4 : 0;
      if (width == 0 || end - at < width) fail("an answer is no protobuf message");
      at += width;
    }
    if (number < 16) {
      found.value[number] = value;
      found.text[number] = text;
    }
  }
  return found;
}

struct Stream {
  uint32_t id = 0;
  int64_t window = 0;       // what the peer still takes
  int64_t sent_bytes = 0;   // of messages, their prefixes included
  int64_t sent = 0, answered = 0;
  int64_t from_ns = 0;
  size_t message = 0;       // which of the messages it sends: the client's to tell
  int64_t due_bytes = 0;    // received and not given back to the peer's window
  int64_t next_offset = -1;
  std::string partial;      // of an answer that lies across frames
  std::string status, told;  // of the trailers
  bool half_closed = false, ended = false;
};

// Who gets what comes.
class Sink {
 public:
  virtual ~Sink() = default;
  virtual void message(Stream* stream, const uint8_t* data, size_t size) = 0;
};

class Connection {
 public:
  Connection(const std::string& address, const std::string& path, Sink* sink) : sink_(sink), incoming_(kReadBytes) {
    connect_to(address);
    fields_ = {{":method", "POST"},
               {":scheme", "http"},
               {":path", path},
               {":authority", address},
               {"content-type", "application/grpc"},
               {"te", "trailers"}};
    nghttp2_hd_deflate_new(&deflater_, 4096);
    nghttp2_hd_inflate_new(&inflater_);
    out_ = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    frame(kSettings, 0, 0, 6);
    out_.append("\0\4", 2);  // SETTINGS_INITIAL_WINDOW_SIZE
    put32(&out_, kOurWindow);
    give_back(0, kOurWindow - 65535);
    flush();
  }
  ~Connection() {
    nghttp2_hd_deflate_del(deflater_);
    nghttp2_hd_inflate_del(inflater_);
    close(socket_);
  }

  int descriptor() const { return socket_; }
  bool blocked() const { return blocked_; }
  size_t under_way() const { return streams_.size(); }
  std::unordered_map<uint32_t, std::unique_ptr<Stream>>& streams() { return streams_; }

  Stream* open() {
    std::vector<nghttp2_nv> pairs;
    for (auto& [name, value] : fields_) {
      pairs.push_back({reinterpret_cast<uint8_t*>(name.data()), reinterpret_cast<uint8_t*>(value.data()), name.size(),
                       value.size(), NGHTTP2_NV_FLAG_NONE});
    }
    uint8_t block[4096];
    ssize_t size = nghttp2_hd_deflate_hd(deflater_, block, sizeof block, pairs.data(), pairs.size());
    if (size < 0) fail("headers can't be encoded");
    auto stream = std::make_unique<Stream>();
    stream->id = next_id_;
    stream->window = initial_window_;
    next_id_ += 2;
    frame(kHeaders, kEndHeaders, stream->id, static_cast<size_t>(size));
    out_.append(reinterpret_cast<char*>(block), static_cast<size_t>(size));
    return (streams_[stream->id] = std::move(stream)).get();
  }

  // Sends of an endless row of `body` (of `size` bytes, repeated in it) up to `limit_bytes` in all, as windows allow.
  // Little is kept until flush(), so that one write takes what many streams have.
  void send_messages(Stream* stream, const std::string& bodies, size_t size, int64_t limit_bytes, bool ends) {
    int64_t wanted = limit_bytes - stream->sent_bytes;
    if (wanted > 0 && wanted <= kLittle && wanted <= std::min(stream->window, window_)) {
      stream->half_closed |= ends;
      frame(kData, ends ? kEndStream : 0, stream->id, static_cast<size_t>(wanted));
      out_.append(bodies, static_cast<size_t>(stream->sent_bytes % static_cast<int64_t>(size)),
                  static_cast<size_t>(wanted));
      stream->sent_bytes = limit_bytes;
      stream->window -= wanted;
      window_ -= wanted;
      return;
    }
    if (!out_.empty()) flush();
    while (!blocked_ && stream->sent_bytes < limit_bytes) {
      char headers[kMostPieces / 2][kFrameHeader];
      iovec pieces[kMostPieces];
      size_t count = 0, total = 0;
      int64_t at = stream->sent_bytes;
      while (count < kMostPieces && at < limit_bytes) {
        int64_t room = std::min({limit_bytes - at, stream->window, window_, static_cast<int64_t>(most_frame_)});
        if (room <= 0) break;
        bool is_last = ends && at + room == limit_bytes;
        char* header = headers[count / 2];
        write_header(header, static_cast<size_t>(room), kData, is_last ? kEndStream : 0, stream->id);
        pieces[count++] = {header, kFrameHeader};
        char* body = const_cast<char*>(bodies.data()) + at % static_cast<int64_t>(size);
        pieces[count++] = {body, static_cast<size_t>(room)};
        total += kFrameHeader + static_cast<size_t>(room);
        at += room;
        stream->window -= room;
        window_ -= room;
        stream->half_closed |= is_last;
      }
      if (count == 0) return;
      stream->sent_bytes = at;
      push(pieces, count, total);
    }
  }

  void end_requests(Stream* stream) {
    stream->half_closed = true;
    frame(kData, kEndStream, stream->id, 0);
  }

  void flush() {
    iovec piece{out_.data(), out_.size()};
    push(&piece, 1, out_.size());
    out_.clear();
  }

  // Takes what has come, without waiting for it.
  void receive() {
    ssize_t got = recv(socket_, incoming_.data() + held_, incoming_.size() - held_, MSG_DONTWAIT);
    if (got == 0) fail("the server closed the connection");
    if (got < 0) {
      if (errno == EAGAIN || errno == EINTR) return;
      fail(std::string("recv: ") + std::strerror(errno));
    }
    held_ += static_cast<size_t>(got);
    size_t at = 0;
    while (held_ - at >= kFrameHeader) {
      const uint8_t* head = incoming_.data() + at;
      size_t size = size_t{head[0]} << 16 | size_t{head[1]} << 8 | head[2];
      if (kFrameHeader + size > incoming_.size()) incoming_.resize(2 * (kFrameHeader + size));
      if (held_ - at < kFrameHeader + size) break;
      head = incoming_.data() + at;
      take(head[3], head[4], get32(head + 5) & 0x7FFFFFFF, head + kFrameHeader, size);
      at += kFrameHeader + size;
    }
    held_ -= at;
    std::memmove(incoming_.data(), incoming_.data() + at, held_);
  }

  // What the kernel did not take before.
  void write_rest() {
    blocked_ = false;
    std::string rest;
    rest.swap(rest_);
    iovec piece{rest.data(), rest.size()};
    push(&piece, 1, rest.size());
  }

 private:
  void connect_to(const std::string& address) {
    auto colon = address.rfind(':');
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(address.substr(0, colon).c_str(), address.substr(colon + 1).c_str(), &hints, &found)) {
      fail("no such address: " + address);
    }
    socket_ = socket(found->ai_family, SOCK_STREAM, 0);
    if (connect(socket_, found->ai_addr, found->ai_addrlen)) fail("no connection to " + address);
    freeaddrinfo(found);
    int on = 1;
    setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  }

  void frame(uint8_t kind, uint8_t flags, uint32_t stream, size_t size) {
    char header[kFrameHeader];
    write_header(header, size, kind, flags, stream);
    out_.append(header, kFrameHeader);
  }
  void give_back(uint32_t stream, int64_t bytes) {
    frame(kWindowUpdate, 0, stream, 4);
    put32(&out_, static_cast<uint32_t>(bytes));
  }

  void push(const iovec* pieces, size_t count, size_t total) {
    if (total == 0) return;
    size_t done = 0;
    if (!blocked_) {
      msghdr message{};
      message.msg_iov = const_cast<iovec*>(pieces);
      message.msg_iovlen = count;
      ssize_t sent = sendmsg(socket_, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent < 0 && errno != EAGAIN && errno != EINTR) fail(std::string("send: ") + std::strerror(errno));
      done = sent < 0 ? 0 : static_cast<size_t>(sent);
    }
    if (done == total) return;
    blocked_ = true;
    for (size_t index = 0; index < count; ++index) {
      size_t skip = std::min(done, pieces[index].iov_len);
      done -= skip;
      rest_.append(static_cast<char*>(pieces[index].iov_base) + skip, pieces[index].iov_len - skip);
    }
  }

  void take(uint8_t kind, uint8_t flags, uint32_t id, const uint8_t* data, size_t size) {
    auto found = streams_.find(id);
    Stream* stream = found == streams_.end() ? nullptr : found->second.get();
    switch (kind) {
      case kData:
        if (stream == nullptr) fail("data of a stream that is not open");
        take_data(stream, flags, data, size);
        break;
      case kHeaders:
      case kContinuation:
        take_headers(stream, kind, flags, data, size);
        break;
      case kSettings:
        if (flags & kAck) break;
        for (size_t at = 0; at + 6 <= size; at += 6) setting(data[at] << 8 | data[at + 1], get32(data + at + 2));
        frame(kSettings, kAck, 0, 0);
        break;
      case kPing:
        if (flags & kAck) break;
        frame(kPing, kAck, 0, size);
        out_.append(reinterpret_cast<const char*>(data), size);
        break;
      case kWindowUpdate:
        if (id == 0) window_ += get32(data);
        else if (stream != nullptr) stream->window += get32(data);
        break;
      case kReset:
        fail("a stream was reset, code " + std::to_string(get32(data)));
      case kGoAway:
        fail("the server goes away, code " + std::to_string(get32(data + 4)));
      default:
        break;
    }
    if (stream != nullptr && (kind == kData || kind == kHeaders) && flags & kEndStream) {
      if (!stream->partial.empty()) fail("a stream ended within an answer");
      if (stream->status != "0") fail("grpc-status " + stream->status + ": " + stream->told);
      stream->ended = true;
    }
  }

  void setting(int name, uint32_t value) {
    if (name == 4) {
      for (auto& [id, stream] : streams_) stream->window += int64_t{value} - initial_window_;
      initial_window_ = value;
    } else if (name == 5) {
      most_frame_ = std::min<size_t>(value, kMostFrame);
    } else if (name == 1) {
      nghttp2_hd_deflate_change_table_size(deflater_, std::min<size_t>(value, 4096));
    }
  }

  void take_data(Stream* stream, uint8_t flags, const uint8_t* data, size_t size) {
    auto flowed = static_cast<int64_t>(size);
    if (flags & kPadded) {
      size_t padding = data[0];
      if (padding + 1 > size) fail("a frame has more padding than it is long");
      ++data;
      size -= padding + 1;
    }
    due_bytes_ += flowed;
    stream->due_bytes += flowed;
    if (due_bytes_ > kOurWindow / 4) give_back(0, std::exchange(due_bytes_, 0));
    if (stream->due_bytes > kOurWindow / 4) give_back(stream->id, std::exchange(stream->due_bytes, 0));
    if (!stream->partial.empty()) {
      // Only up to the end of that one answer: the others need not be copied.
      std::string& partial = stream->partial;
      while (size && (partial.size() < kPrefix || partial.size() < whole(partial))) {
        size_t wanted = (partial.size() < kPrefix ? kPrefix : whole(partial)) - partial.size();
        size_t part = std::min(wanted, size);
        partial.append(reinterpret_cast<const char*>(data), part);
        data += part;
        size -= part;
      }
      if (partial.size() < kPrefix || partial.size() < whole(partial)) return;
      deliver(stream, reinterpret_cast<const uint8_t*>(partial.data()), partial.size() - kPrefix);
      partial.clear();  // And keeps its memory: to free and map a MiB for each answer costs more than to read it.
    }
    while (size >= kPrefix && size - kPrefix >= get32(data + 1)) {
      size_t length = get32(data + 1);
      deliver(stream, data, length);
      data += kPrefix + length;
      size -= kPrefix + length;
    }
    if (size) stream->partial.assign(reinterpret_cast<const char*>(data), size);
  }
  static size_t whole(const std::string& partial) {
    return kPrefix + get32(reinterpret_cast<const uint8_t*>(partial.data()) + 1);
  }
  void deliver(Stream* stream, const uint8_t* data, size_t length) {
    if (data[0] != 0) fail("an answer is compressed");
    sink_->message(stream, data + kPrefix, length);
  }

  void take_headers(Stream* stream, uint8_t kind, uint8_t flags, const uint8_t* data, size_t size) {
    size_t padding = 0;
    if (kind == kHeaders && flags & kPadded) {
      padding = data[0];
      ++data;
      --size;
    }
    if (kind == kHeaders && flags & kPriority) {
      data += 5;
      size -= 5;
    }
    size -= padding;
    bool is_last = flags & kEndHeaders;
    while (size || is_last) {
      nghttp2_nv pair;
      int told = 0;
      ssize_t used = nghttp2_hd_inflate_hd2(inflater_, &pair, &told, data, size, is_last);
      if (used < 0) fail("headers can't be decoded");
      data += used;
      size -= static_cast<size_t>(used);
      if (told & NGHTTP2_HD_INFLATE_EMIT) {
        header(stream, text(pair.name, pair.namelen), text(pair.value, pair.valuelen));
      }
      if (told & NGHTTP2_HD_INFLATE_FINAL) {
        nghttp2_hd_inflate_end_headers(inflater_);
        break;
      }
      if (!(told & NGHTTP2_HD_INFLATE_EMIT) && size == 0) break;
    }
  }
  static std::string_view text(const uint8_t* at, size_t size) { return {reinterpret_cast<const char*>(at), size}; }
  void header(Stream* stream, std::string_view name, std::string_view value) {
    if (name == ":status" && value != "200") fail("HTTP status " + std::string(value));
    if (stream == nullptr) return;
    if (name == "grpc-status") stream->status = value;
    if (name == "grpc-message") stream->told = value;
  }

  Sink* sink_;
  int socket_ = -1;
  std::vector<std::pair<std::string, std::string>> fields_;
  nghttp2_hd_deflater* deflater_ = nullptr;
  nghttp2_hd_inflater* inflater_ = nullptr;
  std::unordered_map<uint32_t, std::unique_ptr<Stream>> streams_;
  uint32_t next_id_ = 1;
  int64_t window_ = 65535, initial_window_ = 65535, due_bytes_ = 0;
  size_t most_frame_ = 16384;
  std::string out_, rest_;
  std::vector<uint8_t> incoming_;
  size_t held_ = 0;
  bool blocked_ = false;
};

}  // namespace bench
