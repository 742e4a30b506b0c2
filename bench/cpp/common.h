// What the clients of bench/cpp share: flags, clocks, latencies, and the one line of JSON that each ends with.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

namespace bench {

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}

inline int64_t now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

// --name=value, all of them.
class Flags {
 public:
  Flags(int argc, char** argv) {
    for (int index = 1; index < argc; ++index) {
      std::string word = argv[index];
      auto equals = word.find('=');
      if (word.rfind("--", 0) != 0 || equals == std::string::npos) fail("not --name=value: " + word);
      values_[word.substr(2, equals - 2)] = word.substr(equals + 1);
    }
  }
  std::string text(const std::string& name, const char* otherwise = nullptr) const {
    auto found = values_.find(name);
    if (found != values_.end()) return found->second;
    if (otherwise == nullptr) fail("--" + name + " is missing");
    return otherwise;
  }
  int64_t number(const std::string& name, int64_t otherwise) const {
    auto found = values_.find(name);
    return found == values_.end() ? otherwise : std::atoll(found->second.c_str());
  }
  double seconds(const std::string& name, double otherwise) const {
    auto found = values_.find(name);
    return found == values_.end() ? otherwise : std::atof(found->second.c_str());
  }

 private:
  std::map<std::string, std::string> values_;
};

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("can't read " + path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// What one run found. Figures are of the time after the warm-up; `requests` and `records` are all that were answered,
// those of the warm-up included, as that is what the log is compared with.
struct Found {
  int64_t requests = 0;
  int64_t records = 0;
  int64_t bytes = 0;
  int64_t measured = 0;
  int64_t measured_bytes = 0;
  double elapsed_s = 0;
  std::vector<uint32_t> latencies_ns;

  double percentile_us(double share) {
    size_t place = static_cast<size_t>(share * static_cast<double>(latencies_ns.size()));
    place = std::min(place, latencies_ns.size() - 1);
    std::nth_element(latencies_ns.begin(), latencies_ns.begin() + place, latencies_ns.end());
    return latencies_ns[place] / 1e3;
  }

  void print() {
    if (elapsed_s <= 0 || measured == 0) fail("nothing was answered within the time measured");
    std::printf(
        "{\"requests\": %lld, \"records\": %lld, \"measured\": %lld, \"measured_bytes\": %lld, \"elapsed_s\": %.6f",
        static_cast<long long>(requests), static_cast<long long>(records), static_cast<long long>(measured),
        static_cast<long long>(measured_bytes), elapsed_s);
    if (!latencies_ns.empty()) {
      std::printf(", \"p50_us\": %.1f", percentile_us(0.5));
      std::printf(", \"p99_us\": %.1f", percentile_us(0.99));
    }
    std::printf("}\n");
  }
};

// Tells warm-up, measurement and the end apart. Work goes on until over(); note() is called for each answer.
class Run {
 public:
  Run(double warm_s, double seconds, int64_t max_requests)
      : from_ns_(now_ns() + static_cast<int64_t>(warm_s * 1e9)),
        until_ns_(from_ns_ + static_cast<int64_t>(seconds * 1e9)),
        max_requests_(max_requests) {}

  // Whether no request is to be sent any more.
  bool over(int64_t at_ns, int64_t sent) const { return at_ns >= until_ns_ || sent >= max_requests_; }
  bool full(int64_t sent) const { return sent >= max_requests_; }
  int64_t until_ns() const { return until_ns_; }

  void note(int64_t at_ns, int64_t requests, int64_t records, int64_t bytes) {
    found.requests += requests;
    found.records += records;
    found.bytes += bytes;
    if (at_ns < from_ns_) return;
    if (first_ns_ == 0) {
      // What was answered at this moment was under way before it.
      first_ns_ = at_ns;
      return;
    }
    if (at_ns > until_ns_) {
      // The tail, while nothing new is sent, is not what is measured; but a run that was cut short ends with it.
      if (last_ns_ != 0) return;
    }
    found.measured += requests;
    found.measured_bytes += bytes;
    last_ns_ = at_ns;
  }
  void note_latency(int64_t from, int64_t at_ns) {
    if (at_ns < from_ns_) return;
    found.latencies_ns.push_back(static_cast<uint32_t>(std::min<int64_t>(at_ns - from, UINT32_MAX)));
  }
  Found& end() {
    found.elapsed_s = static_cast<double>(last_ns_ - first_ns_) / 1e9;
    return found;
  }

  Found found;

 private:
  int64_t from_ns_, until_ns_, max_requests_;
  int64_t first_ns_ = 0, last_ns_ = 0;
};

}  // namespace bench
