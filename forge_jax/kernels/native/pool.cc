#include "pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace forge {
namespace {

// How long a thread without work looks for more before it sleeps: longer than what XLA does between two kernels of a
// decoding step, much shorter than a prompt, during which XLA wants the cores for itself.
constexpr std::chrono::microseconds PATIENCE{500};
constexpr int LOOKS = 64;  // between two readings of the clock

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The pieces of one job are claimed by a single number, (job << 32 | next piece): a helper that comes late, with what
// belongs to an earlier job in its hands, cannot claim a piece of this one.
class Pool {
 public:
  void run(int64_t count, int64_t parts, Work work, void* what) {
    if (parts <= 1 || threads() == 1 || !busy_.try_lock()) return work(what, 0, count);
    start();
    const uint64_t job = ++job_ << 32;
    ticket_ = job | CLOSED;
    work_ = work, what_ = what, count_ = count, parts_ = parts, done_ = 0;
    ticket_ = job;
    if (asleep_.load() > 0) {
      ++bell_;
      bell_.notify_all();
    }
    help();
    while (done_.load() < parts) pause();
    busy_.unlock();
  }

 private:
  static constexpr uint64_t CLOSED = 0xffffffff;

  // Claims and does pieces until there are none; whether there was one.
  bool help() {
    bool any = false;
    for (;;) {
      uint64_t ticket = ticket_.load();
      const int64_t piece = ticket & CLOSED, parts = parts_, count = count_;
      const Work work = work_;
      void* const what = what_;
      if (piece >= parts) return any;
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1)) continue;
      // rounded up: who did a smaller piece is free first, and takes a larger one
      work(what, (count * piece + parts - 1) / parts, (count * (piece + 1) + parts - 1) / parts);
      any = true;
      ++done_;
    }
  }

  void wait() {
    const auto end = std::chrono::steady_clock::now() + PATIENCE;
    do {
      for (int i = 0; i < LOOKS; ++i) {
        if (help()) return;
        pause();
      }
    } while (std::chrono::steady_clock::now() < end);
    const uint32_t heard = bell_.load();
    ++asleep_;
    if (!help()) bell_.wait(heard);
    --asleep_;
  }

  void start() {
    if (started_) return;
    started_ = true;
    for (int i = 1; i < threads(); ++i) std::thread([this] { for (;;) wait(); }).detach();
  }

  std::mutex busy_;
  bool started_ = false;
  uint64_t job_ = 0;
  alignas(64) std::atomic<uint64_t> ticket_{CLOSED};
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<Work> work_{nullptr};
  std::atomic<void*> what_{nullptr};
  std::atomic<int64_t> count_{0}, parts_{0};
  alignas(64) std::atomic<uint32_t> bell_{0};
  std::atomic<int> asleep_{0};
};

}  // namespace

int threads() {
#if defined(__linux__)
  static const int count = [] {
    cpu_set_t may;
    return sched_getaffinity(0, sizeof may, &may) == 0 ? std::max(1, CPU_COUNT(&may)) : 1;
  }();
#else
  static const int count = std::max(1u, std::thread::hardware_concurrency());
#endif
  return count;
}

void parallel(int64_t count, int64_t parts, Work work, void* what) {
  static Pool* const pool = new Pool;  // never destroyed: its threads outlive what ends before the process does
  pool->run(count, std::min(parts, count), work, what);
}

}  // namespace forge
