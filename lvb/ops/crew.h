// Threads of XLA's pool that share out a work, for the native programs of CPUs.

#ifndef LVB_OPS_CREW_H_
#define LVB_OPS_CREW_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace lvb {

// Does pieces 0 ... count - 1 of a work; the second number is that of the thread.
using Work = std::function<void(int64_t, int)>;
using Parallel = std::function<void(int64_t, const Work&)>;

inline void alone(int64_t count, const Work& work) {
  for (int64_t i = 0; i < count; ++i) work(i, 0);
}

// Threads of XLA's pool that help the calling one. It takes pieces, too, and waits only
// for pieces that a helper has begun, so that helpers who come late cost nothing.
class Crew {
 public:
  Crew(xla::ffi::ThreadPool& pool, int threads) : shared_(std::make_shared<Shared>()) {
    for (int thread = 1; thread < threads; ++thread)
      pool.Schedule([shared = shared_, thread] { help(*shared, thread); });
  }
  ~Crew() { shared_->pieces.store(kOver, std::memory_order_release); }

  void run(int64_t count, const Work& work) {
    Shared& s = *shared_;
    s.work = &work;
    s.finished.store(0, std::memory_order_relaxed);
    round_ = (round_ + 1) % (kOver >> 40);
    s.pieces.store(round_ << 40 | uint64_t(count) << 20, std::memory_order_release);
    while (take(s, 0)) {
    }
    for (int spins = 0; s.finished.load(std::memory_order_acquire) < count;)
      rest(spins);
  }

 private:
  struct Shared {
    // Number of the work, its pieces and how many of them are taken, in one word: who
    // takes a piece knows that this work is still the one that is done.
    std::atomic<uint64_t> pieces{0};
    std::atomic<int64_t> finished{0};
    const Work* work = nullptr;
  };
  static constexpr uint64_t kOver = ~uint64_t{0}, kMask = (1 << 20) - 1;

  static bool take(Shared& s, int thread) {
    uint64_t pieces = s.pieces.load(std::memory_order_acquire);
    while (pieces != kOver && (pieces & kMask) < (pieces >> 20 & kMask)) {
      if (s.pieces.compare_exchange_weak(pieces, pieces + 1,
                                         std::memory_order_acq_rel)) {
        (*s.work)(pieces& kMask, thread);
        s.finished.fetch_add(1, std::memory_order_release);
        return true;
      }
    }
    return false;
  }
  static void help(Shared& s, int thread) {
    for (int spins = 0; s.pieces.load(std::memory_order_acquire) != kOver;)
      if (take(s, thread)) {
        spins = 0;
      } else {
        rest(spins);
      }
  }
  static void rest(int& spins) {
    if (++spins > 4000) std::this_thread::yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  std::shared_ptr<Shared> shared_;
  uint64_t round_ = 0;
};

}  // namespace lvb

#endif  // LVB_OPS_CREW_H_
