// Formats of blocks of 256 numbers, eight runs each, whose scales are packed themselves.
#pragma once

#include "formats.h"

namespace forge {

constexpr int EIGHT = 8;  // runs of a block

// 32 bytes as codes of 4 bits: their low halves, or their high ones.
inline void halves_of(const uint8_t* from, bool high, Ints* codes) {
  for (int i = 0; i < RUNS; ++i) codes[i] = widen(from + i * WIDTH) >> (high ? 4 : 0) & 15;
}

// The scale and the minimum of a run, of 6 bits each: those of the last four are spread over what the others leave.
struct Pair {
  int scale, minimum;

  Pair(const uint8_t* packed, int run) {
    if (run < 4) {
      scale = packed[run] & 63, minimum = packed[run + 4] & 63;
    } else {
      scale = (packed[run + 4] & 15) | (packed[run - 4] >> 6 << 4);
      minimum = packed[run + 4] >> 4 | packed[run] >> 6 << 4;
    }
  }
};

// Parts d [1], dmin [1], scales [12], qs [128]: d * scale * code - dmin * minimum.
struct Q4_K {
  static constexpr int block = 256, parts = 4, bytes[] = {2, 2, 12, 128}, codes = 3;

  static void decode(const Row& row, int64_t run, Floats* out) {
    const int64_t at = run / EIGHT, sub = run % EIGHT;
    const Pair pair(row.as<uint8_t>(2, at * 12), sub);
    const Floats d = all(half(*row.as<uint16_t>(0, at)) * pair.scale);
    const Floats m = all(half(*row.as<uint16_t>(1, at)) * pair.minimum);
    Ints code[RUNS];
    halves_of(row.as<uint8_t>(3, at * 128 + sub / 2 * 32), sub % 2, code);
    for (int i = 0; i < RUNS; ++i) out[i] = floats(code[i]) * d - m;
  }
};

// Parts d [1], dmin [1], scales [12], qh [32], qs [128]: as Q4_K, bit `sub` of qh being the fifth.
struct Q5_K {
  static constexpr int block = 256, parts = 5, bytes[] = {2, 2, 12, 32, 128}, codes = 4;

  static void decode(const Row& row, int64_t run, Floats* out) {
    const int64_t at = run / EIGHT, sub = run % EIGHT;
    const Pair pair(row.as<uint8_t>(2, at * 12), sub);
    const Floats d = all(half(*row.as<uint16_t>(0, at)) * pair.scale);
    const Floats m = all(half(*row.as<uint16_t>(1, at)) * pair.minimum);
    const uint8_t* high = row.as<uint8_t>(3, at * 32);
    Ints code[RUNS];
    halves_of(row.as<uint8_t>(4, at * 128 + sub / 2 * 32), sub % 2, code);
    for (int i = 0; i < RUNS; ++i)
      out[i] = floats(code[i] | (widen(high + i * WIDTH) >> static_cast<int>(sub) & 1) << 4) * d - m;
  }
};

// Parts ql [128], qh [64], scales [16], d [1]: d * scale * (code - 32), a scale for every 16.
struct Q6_K {
  static constexpr int block = 256, parts = 4, bytes[] = {128, 64, 16, 2}, codes = 0;

  static void decode(const Row& row, int64_t run, Floats* out) {
    const int64_t at = run / EIGHT, sub = run % EIGHT, group = sub / 4, quarter = sub % 4;
    const float d = half(*row.as<uint16_t>(3, at));
    const int8_t* scales = row.as<int8_t>(2, at * 16 + sub * 2);
    const uint8_t* high = row.as<uint8_t>(1, at * 64 + group * 32);
    Ints code[RUNS];
    halves_of(row.as<uint8_t>(0, at * 128 + group * 64 + quarter % 2 * 32), quarter / 2, code);
    for (int i = 0; i < RUNS; ++i) {
      code[i] |= (widen(high + i * WIDTH) >> static_cast<int>(2 * quarter) & 3) << 4;
      out[i] = floats(code[i] - 32) * all(d * scales[i * WIDTH / 16]);
    }
  }
};

// Parts d [1], scales_h [1], scales_l [4], qs [128]: d * (scale - 32) * value of the code, a scale of 6 bits a run.
struct IQ4_XS {
  static constexpr int block = 256, parts = 4, bytes[] = {2, 2, 4, 128}, codes = 3;

  static void decode(const Row& row, int64_t run, Floats* out) {
    const int64_t at = run / EIGHT, sub = run % EIGHT;
    const int low = *row.as<uint8_t>(2, at * 4 + sub / 2) >> (sub % 2 * 4) & 15;
    const int scale = low | (*row.as<uint16_t>(1, at) >> (2 * sub) & 3) << 4;
    look_up(row.as<uint8_t>(3, at * 128 + sub * 16), IQ4_VALUES, half(*row.as<uint16_t>(0, at)) * (scale - 32), out);
  }
};

}  // namespace forge
