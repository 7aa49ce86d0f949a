// How rows of weights are stored, and how 32 numbers of a row become floats: the same bits as forge_jax.quantization
// gives. A format says how many numbers are in a block and how many bytes each of its parts has a block.
#pragma once

#include "vectors.h"

namespace forge {

constexpr int RUN = 32;            // numbers that are decoded at a time
constexpr int RUNS = RUN / WIDTH;  // vectors of them

// The beginning of a row in each part.
struct Row {
  const uint8_t* part[4];

  template <class T>
  const T* as(int i, int64_t index) const {
    return reinterpret_cast<const T*>(part[i]) + index;
  }
};

// 16 bytes as 32 codes of 4 bits, first the low halves and then the high ones.
inline void nibbles(const uint8_t* from, Ints* codes) {
  for (int i = 0; i < RUNS / 2; ++i) {
    const Ints byte = widen(from + i * WIDTH);
    codes[i] = byte & 15;
    codes[RUNS / 2 + i] = byte >> 4;
  }
}

// Parts d [1], qs [32]: d * code.
struct Q8_0 {
  static constexpr int block = 32, parts = 2, bytes[] = {2, 32};

  static void decode(const Row& row, int64_t run, Floats* out) {
    const Floats d = all(half(*row.as<uint16_t>(0, run)));
    const int8_t* codes = row.as<int8_t>(1, run * RUN);
    for (int i = 0; i < RUNS; ++i) out[i] = floats(widen(codes + i * WIDTH)) * d;
  }
};

// Parts d [1], qs [16]: d * (code - 8).
struct Q4_0 {
  static constexpr int block = 32, parts = 2, bytes[] = {2, 16};

  static void decode(const Row& row, int64_t run, Floats* out) {
    const Floats d = all(half(*row.as<uint16_t>(0, run)));
    Ints codes[RUNS];
    nibbles(row.as<uint8_t>(1, run * 16), codes);
    for (int i = 0; i < RUNS; ++i) out[i] = floats(codes[i] - 8) * d;
  }
};

// Parts d [1], m [1], qs [16]: d * code + m.
struct Q4_1 {
  static constexpr int block = 32, parts = 3, bytes[] = {2, 2, 16};

  static void decode(const Row& row, int64_t run, Floats* out) {
    const Floats d = all(half(*row.as<uint16_t>(0, run))), m = all(half(*row.as<uint16_t>(1, run)));
    Ints codes[RUNS];
    nibbles(row.as<uint8_t>(2, run * 16), codes);
    for (int i = 0; i < RUNS; ++i) out[i] = floats(codes[i]) * d + m;
  }
};

}  // namespace forge
