// y[r][o] = sum over k of x[r][k] * w[o][k], rows of w in any format, sums in float32. In which order a number is added
// up depends on the number of rows of x, never on the threads.
#pragma once

#include <algorithm>
#include <span>

#include "superblocks.h"
#include "pool.h"

namespace forge {

// What a product works on. `part` and `pitch`: where each part of the weights begins, and the bytes of a row in it.
// `inverse`: 2^32 over the runs of a group, rounded up, where parts have a number a group. `first`: which of all rows that
// are multiplied in a call the first one of x is.
struct Operands {
  const float* x;
  float* y;
  const uint8_t* part[PARTS];
  int64_t pitch[PARTS];
  int64_t rows, outputs, inputs, inverse, first;

  Row weights(int64_t output) const {
    Row row;
    row.inverse = inverse;
    for (int i = 0; i < PARTS; ++i) row.part[i] = part[i] + output * pitch[i];
    return row;
  }
};

constexpr int AHEAD = 1 << 14;  // bytes: what memory delivers in some hundred nanoseconds, and more

// Asks for what is read soon, into the second cache: the first can wait for far fewer lines at a time. As a function
// without effects it would be left out where it is not inlined at once.
__attribute__((always_inline)) inline void ahead(const uint8_t* here) { __builtin_prefetch(here + AHEAD, 0, 2); }

// OUT outputs of ROWS rows of x, each added up in CHAINS sums that need not wait for each other.
template <class Format, int OUT, int ROWS, int CHAINS>
void tile(const Operands& p, int64_t output, int64_t row) {
  constexpr int codes = Format::codes, step = Format::bytes[codes] * RUN / Format::block;
  Row weights[OUT];
  for (int o = 0; o < OUT; ++o) weights[o] = p.weights(output + o);
  const float* x = p.x + row * p.inputs;
  Floats sums[OUT][ROWS][CHAINS] = {};
  for (int64_t run = 0; run < p.inputs / RUN; ++run) {
    Floats w[OUT][RUNS];
#pragma GCC unroll 8
    for (int o = 0; o < OUT; ++o) {
      if (step == 64) ahead(weights[o].part[codes] + run * step);
      // a row by itself is read as it lies in memory, and the processor sees what comes next; here it does not
      if (OUT > 1) __builtin_prefetch(weights[o].part[codes] + OUT * p.pitch[codes] + run * step);
      Format::decode(weights[o], run, w[o]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
      for (int i = 0; i < RUNS; ++i) {
        const Floats here = load(x + r * p.inputs + run * RUN + i * WIDTH);
#pragma GCC unroll 8
        for (int o = 0; o < OUT; ++o) sums[o][r][i % CHAINS] += w[o][i] * here;
      }
  }
  for (int o = 0; o < OUT; ++o)
    for (int r = 0; r < ROWS; ++r) {
      Floats sum{};
      for (int c = 0; c < CHAINS; ++c) sum += sums[o][r][c];
      p.y[(row + r) * p.outputs + output + o] = total(sum);
    }
}

constexpr int64_t PIECE = 1 << 15;  // bytes of weights that are worth a piece of work

// How many pieces so many bytes are worth: as many for each thread, or one.
inline int64_t worth(int64_t bytes) {
  return bytes < PIECE ? 1 : threads() * std::clamp<int64_t>(bytes / PIECE / threads(), 1, 8);
}

// Calls some(p, from, to) for ranges of outputs of several products, on all threads; a range begins at a multiple of
// `group`.
template <class Format, class Some>
void shared(std::span<const Operands> tasks, int64_t group, Some some) {
  int64_t bytes = 0, groups = 0;
  for (const Operands& p : tasks) {
    groups += (p.outputs + group - 1) / group;
    for (int i = 0; i < Format::parts; ++i) bytes += p.pitch[i] * p.outputs;
  }
  auto range = [&](int64_t from, int64_t to) {
    for (const Operands& p : tasks) {
      const int64_t own = (p.outputs + group - 1) / group;
      const int64_t first = std::max<int64_t>(from, 0), end = std::min(to, own);
      if (first < end) some(p, first * group, std::min(end * group, p.outputs));
      from -= own, to -= own;
    }
  };
  parallel(groups, worth(bytes * tasks[0].rows), range);
}

template <class Format>
void product(std::span<const Operands> tasks) {
  shared<Format>(tasks, 1, [](const Operands& p, int64_t from, int64_t to) {
    int64_t row = 0;
    for (; row + 8 <= p.rows; row += 8) {
      int64_t output = from;
      for (; output + 2 <= to; output += 2) tile<Format, 2, 8, 1>(p, output, row);
      if (output < to) tile<Format, 1, 8, 1>(p, output, row);
    }
    for (; row + 4 <= p.rows; row += 4)
      for (int64_t output = from; output < to; ++output) tile<Format, 1, 4, 2>(p, output, row);
    for (; row < p.rows; ++row)
      for (int64_t output = from; output < to; ++output) tile<Format, 1, 1, 2>(p, output, row);
  });
}

// Rows as floats, y [outputs, inputs].
template <class Format>
void open(const Operands& p) {
  auto some = [&](int64_t from, int64_t to) {
    for (int64_t output = from; output < to; ++output)
      for (int64_t run = 0; run < p.inputs / RUN; ++run) {
        Floats w[RUNS];
        Format::decode(p.weights(output), run, w);
        for (int i = 0; i < RUNS; ++i) store(p.y + output * p.inputs + run * RUN + i * WIDTH, w[i]);
      }
  };
  parallel(p.outputs, worth(p.outputs * p.inputs), some);
}

}  // namespace forge
