// y[r][o] = sum over k of x[r][k] * w[o][k], rows of w in any format, sums in float32. In which order a number is added
// up depends on the number of rows of x, never on the threads.
#pragma once

#include <algorithm>
#include <span>
#include <type_traits>
#include <vector>

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
  Floats apart[ROWS * OUT];
  float found[ROWS * OUT];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS * OUT; ++i) {
    apart[i] = sums[i % OUT][i / OUT][0];
    for (int c = 1; c < CHAINS; ++c) apart[i] += sums[i % OUT][i / OUT][c];
  }
  if constexpr (ROWS * OUT % WIDTH == 0)
    for (int i = 0; i < ROWS * OUT; i += WIDTH) store(found + i, totals(apart + i));
  else
    for (int i = 0; i < ROWS * OUT; ++i) found[i] = total(apart[i]);
  for (int i = 0; i < ROWS * OUT; ++i) p.y[(row + i / OUT) * p.outputs + output + i % OUT] = found[i];
}

constexpr int64_t APART = 1 << 15;  // bytes of weights that are worth more than one thread
constexpr int64_t PIECE = 1 << 17;  // that are worth a piece of work: memory delivers long runs faster

// How many pieces so many bytes are worth: as many for each thread, or one.
inline int64_t worth(int64_t bytes) {
  return bytes < APART ? 1 : threads() * std::clamp<int64_t>(bytes / PIECE / threads(), 1, 8);
}

// Calls some(p, from, to) for ranges of outputs of several products, on all threads; a range begins at a multiple of
// `group`.
template <class Format, class Some>
void shared(std::span<const Operands> tasks, int64_t group, int64_t most, Some some) {
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
  parallel(groups, std::min(most, worth(bytes * tasks[0].rows)), range);
}

constexpr int64_t SPAN = 2 * WIDTH;  // outputs of a panel
constexpr int64_t DEPTH = 320;  // inputs of a panel at most, and numbers that are added up before sums are added
constexpr int64_t PITCH = DEPTH + WIDTH;  // between copied rows of x: a power of two apart they drive each other out
constexpr int64_t PANELS = 8;  // that are multiplied by the same rows of x while these are in the first cache: 320 KB
constexpr int64_t REPEATED = 16;  // rows for which it is faster to decode a weight again for every eight of them

// SPAN rows of weights as floats from input `from` to `to`, [inputs, SPAN]; rows past the last output are zero.
template <class Format>
void open(const Operands& p, int64_t output, int64_t from, int64_t to, float* panel) {
  for (int64_t first = 0; first < SPAN; first += WIDTH) {
    const int64_t count = std::clamp<int64_t>(p.outputs - output - first, 0, WIDTH);
    for (int64_t run = from / RUN; run < to / RUN; ++run) {
      Floats w[WIDTH][RUNS] = {}, turned[WIDTH];
      for (int64_t o = 0; o < count; ++o) Format::decode(p.weights(output + first + o), run, w[o]);
      for (int part = 0; part < RUNS; ++part) {
        for (int o = 0; o < WIDTH; ++o) turned[o] = w[o][part];
        transpose(turned);
        float* const inputs = panel + (run * RUN - from + part * WIDTH) * SPAN + first;
        for (int i = 0; i < WIDTH; ++i) store(inputs + i * SPAN, turned[i]);
      }
    }
  }
}

// ROWS rows of x, which lie `PITCH` apart, times a panel, added to what is there of y unless it is the first panel.
template <int ROWS>
void panel_tile(const Operands& p, const float* x, const float* panel, int64_t output, int64_t row, int64_t from,
                int64_t to) {
  Floats sums[ROWS][2];
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) sums[r][0] = sums[r][1] = Floats{};
  for (int64_t i = 0; i < to - from; ++i, panel += SPAN) {
    const Floats low = load(panel), high = load(panel + WIDTH);
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) {
      const Floats here = all(x[r * PITCH + i]);
      sums[r][0] += low * here, sums[r][1] += high * here;
    }
  }
  const int64_t count = std::min(SPAN, p.outputs - output);
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) {
    float* y = p.y + (row + r) * p.outputs + output;
    if (count == SPAN) {
      store(y, from ? load(y) + sums[r][0] : sums[r][0]);
      store(y + WIDTH, from ? load(y + WIDTH) + sums[r][1] : sums[r][1]);
    } else {
      float sum[SPAN];
      store(sum, sums[r][0]), store(sum + WIDTH, sums[r][1]);
      for (int64_t o = 0; o < count; ++o) y[o] = from ? y[o] + sum[o] : sum[o];
    }
  }
}

// Many rows: weights are decoded once, some panels at a time that stay in the second cache, and multiplied by all rows.
template <class Format>
void panels(const Operands& p, int64_t first, int64_t end) {
  constexpr int MOST = WIDTH == 16 ? 12 : 6;  // rows whose sums are kept in registers
  static thread_local std::vector<float> space(PANELS * SPAN * DEPTH + MOST * PITCH + 16);
  float* const panel = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(space.data()) + 63) / 64 * 64);
  float* const x = panel + PANELS * SPAN * DEPTH;
  const int64_t passes = (p.inputs + DEPTH - 1) / DEPTH, depth = (p.inputs / RUN + passes - 1) / passes * RUN;
  for (int64_t start = first; start < end; start += PANELS * SPAN)
    for (int64_t from = 0; from < p.inputs; from += depth) {
      const int64_t to = std::min(from + depth, p.inputs), stop = std::min(start + PANELS * SPAN, end);
      for (int64_t output = start; output < stop; output += SPAN)
        open<Format>(p, output, from, to, panel + (output - start) * depth);
      auto tiles = [&](auto rows, int64_t row) {
        for (int r = 0; r < rows; ++r)
          std::memcpy(x + r * PITCH, p.x + (row + r) * p.inputs + from, (to - from) * sizeof(float));
        for (int64_t output = start; output < stop; output += SPAN)
          panel_tile<rows>(p, x, panel + (output - start) * depth, output, row, from, to);
      };
      int64_t row = 0;
      for (; row + MOST <= p.rows; row += MOST) tiles(std::integral_constant<int, MOST>(), row);
      for (; row + 4 <= p.rows; row += 4) tiles(std::integral_constant<int, 4>(), row);
      for (; row < p.rows; ++row) tiles(std::integral_constant<int, 1>(), row);
    }
}

template <class Format>
void product(std::span<const Operands> tasks) {
  if (tasks[0].rows > REPEATED) return shared<Format>(tasks, SPAN, 2 * threads(), panels<Format>);
  shared<Format>(tasks, 1, 8 * threads(), [](const Operands& p, int64_t from, int64_t to) {
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

}  // namespace forge
