// y[r][o] = sum over k of x[r][k] * w[o][k], rows of w in any format, sums in float32. A number of y is added up in the
// same order whatever else is computed beside it, so that it has the same bits alone and in any batch.
#pragma once

#include <algorithm>

#include "superblocks.h"
#include "pool.h"

namespace forge {

// What a product works on. `part` and `pitch`: where each part of the weights begins, and the bytes of a row in it.
struct Operands {
  const float* x;
  float* y;
  const uint8_t* part[PARTS];
  int64_t pitch[PARTS];
  int64_t rows, outputs, inputs;

  Row weights(int64_t output) const {
    Row row;
    for (int i = 0; i < PARTS; ++i) row.part[i] = part[i] + output * pitch[i];
    return row;
  }
};

// OUT outputs of ROWS rows of x.
template <class Format, int OUT, int ROWS>
void tile(const Operands& p, int64_t output, int64_t row) {
  Row weights[OUT];
#pragma GCC unroll 16
  for (int o = 0; o < OUT; ++o) weights[o] = p.weights(output + o);
  const float* x = p.x + row * p.inputs;
  constexpr int codes = Format::codes, step = Format::bytes[codes] * RUN / Format::block;
  Floats sums[OUT][ROWS] = {};
  for (int64_t run = 0; run < p.inputs / RUN; ++run) {
    // what the next tile needs: a row is too short for the processor to see where memory is read
#pragma GCC unroll 16
    for (int o = 0; o < OUT; ++o) __builtin_prefetch(weights[o].part[codes] + OUT * p.pitch[codes] + run * step);
    Floats w[OUT][RUNS];
#pragma GCC unroll 16
    for (int o = 0; o < OUT; ++o) Format::decode(weights[o], run, w[o]);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
      for (int i = 0; i < RUNS; ++i) {
        const Floats here = load(x + r * p.inputs + run * RUN + i * WIDTH);
#pragma GCC unroll 16
        for (int o = 0; o < OUT; ++o) sums[o][r] += w[o][i] * here;
      }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
    for (int o = 0; o < OUT; ++o) p.y[(row + r) * p.outputs + output + o] = total(sums[o][r]);
}

// OUT outputs of all rows of x.
template <class Format, int OUT>
void outputs(const Operands& p, int64_t output) {
  int64_t row = 0;
  for (; row + 8 <= p.rows; row += 8)
    if constexpr (OUT > 2) {
      for (int o = 0; o < OUT; o += 2) tile<Format, 2, 8>(p, output + o, row);
    } else {
      tile<Format, OUT, 8>(p, output, row);
    }
  for (; row + 2 <= p.rows; row += 2) tile<Format, OUT, 2>(p, output, row);
  if (row < p.rows) tile<Format, OUT, 1>(p, output, row);
}

constexpr int64_t PIECE = 1 << 15;  // bytes of weights that are worth a piece of work

// Calls some<OUT>(output) for all outputs, four or one at a time, on all threads.
template <class Format, class Some>
void shared(const Operands& p, Some some) {
  auto part = [&](int64_t from, int64_t to) {
    int64_t output = from * 4;
    const int64_t end = std::min(to * 4, p.outputs);
    for (; output + 4 <= end; output += 4) some.template operator()<4>(output);
    for (; output < end; ++output) some.template operator()<1>(output);
  };
  int64_t bytes = 0;
  for (int i = 0; i < Format::parts; ++i) bytes += p.pitch[i] * p.outputs;
  const int64_t pieces = std::min<int64_t>(bytes * p.rows / PIECE, 8 * threads());
  parallel((p.outputs + 3) / 4, pieces, part);
}

template <class Format>
void product(const Operands& p) {
  shared<Format>(p, [&]<int OUT>(int64_t output) { outputs<Format, OUT>(p, output); });
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
  parallel(p.outputs, std::min<int64_t>(p.outputs * p.inputs / PIECE, 8 * threads()), some);
}

}  // namespace forge
