// How rows of weights are stored, and how 32 numbers of a row become floats, as forge_jax.quantization says. A format
// says how many numbers are in a block, how many bytes each of its parts has a block, and which part is the largest.
#pragma once

#include "codes.h"

namespace forge {

constexpr int RUN = 32;            // numbers that are decoded at a time
constexpr int RUNS = RUN / WIDTH;  // vectors of them

constexpr int PARTS = 5;           // that a format has at most

// The beginning of a row in each part. `inverse`: 2^32 over the runs of a group, where parts have a number a group.
struct Row {
  const uint8_t* part[PARTS];
  int64_t inverse;

  // run / runs, for fewer than 2^16 runs.
  int64_t group(int64_t run) const { return run * inverse >> 32; }

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
  static constexpr int block = 32, parts = 2, bytes[] = {2, 32}, codes = 1;

  static void decode(const Row& row, int64_t run, Floats* out) {
    const Floats d = all(half(*row.as<uint16_t>(0, run)));
    const int8_t* from = row.as<int8_t>(1, run * RUN);
    for (int i = 0; i < RUNS; ++i) out[i] = floats(widen(from + i * WIDTH)) * d;
  }
};

// Parts d [1], qs [16]: d * (code - 8).
struct Q4_0 {
  static constexpr int block = 32, parts = 2, bytes[] = {2, 16}, codes = 1;

  static void decode(const Row& row, int64_t run, Floats* out) {
    const Floats d = all(half(*row.as<uint16_t>(0, run)));
    Ints code[RUNS];
    nibbles(row.as<uint8_t>(1, run * 16), code);
    for (int i = 0; i < RUNS; ++i) out[i] = floats(code[i] - 8) * d;
  }
};

// Parts d [1], m [1], qs [16]: d * code + m.
struct Q4_1 {
  static constexpr int block = 32, parts = 3, bytes[] = {2, 2, 16}, codes = 2;

  static void decode(const Row& row, int64_t run, Floats* out) {
    const Floats d = all(half(*row.as<uint16_t>(0, run))), m = all(half(*row.as<uint16_t>(1, run)));
    Ints code[RUNS];
    nibbles(row.as<uint8_t>(2, run * 16), code);
    for (int i = 0; i < RUNS; ++i) out[i] = floats(code[i]) * d + m;
  }
};

// The fifth bits of 32 codes, from one word.
inline void fifth_bits(uint32_t word, Ints* codes) {
  for (int i = 0; i < RUNS; ++i) codes[i] |= (all(static_cast<int32_t>(word)) >> (lanes() + i * WIDTH) & 1) << 4;
}

// Parts d [1], qh [1], qs [16]: d * (code - 16).
struct Q5_0 {
  static constexpr int block = 32, parts = 3, bytes[] = {2, 4, 16}, codes = 2;

  static void decode(const Row& row, int64_t run, Floats* out) {
    const Floats d = all(half(*row.as<uint16_t>(0, run)));
    Ints code[RUNS];
    nibbles(row.as<uint8_t>(2, run * 16), code);
    fifth_bits(*row.as<uint32_t>(1, run), code);
    for (int i = 0; i < RUNS; ++i) out[i] = floats(code[i] - 16) * d;
  }
};

// Parts d [1], m [1], qh [1], qs [16]: d * code + m.
struct Q5_1 {
  static constexpr int block = 32, parts = 4, bytes[] = {2, 2, 4, 16}, codes = 3;

  static void decode(const Row& row, int64_t run, Floats* out) {
    const Floats d = all(half(*row.as<uint16_t>(0, run))), m = all(half(*row.as<uint16_t>(1, run)));
    Ints code[RUNS];
    nibbles(row.as<uint8_t>(3, run * 16), code);
    fifth_bits(*row.as<uint32_t>(2, run), code);
    for (int i = 0; i < RUNS; ++i) out[i] = floats(code[i]) * d + m;
  }
};

// Codes that number the values of a table.
inline void look_up(const uint8_t* from, const float* table, float scale, Floats* out) {
  Ints code[RUNS];
  nibbles(from, code);
  for (int i = 0; i < RUNS; ++i) out[i] = chosen(table, code[i]) * all(scale);
}

constexpr float IQ4_VALUES[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr uint8_t IQ4_BYTES[] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};  // + 128
constexpr float E2M1_DOUBLED[] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
constexpr uint8_t E2M1_BYTES[] = {128, 129, 130, 131, 132, 134, 136, 140, 128, 127, 126, 125, 124, 122, 120, 116};

// 2^(e - 128), half of what a byte of E8M0 says; the smallest two are subnormal.
inline float power(uint32_t e) {
  const uint32_t same = e < 2 ? 1u << 21 << e : (e - 1) << 23;
  float value;
  std::memcpy(&value, &same, sizeof value);
  return value;
}

// Parts d [1], qs [16]: d * value of the code.
struct IQ4_NL {
  static constexpr int block = 32, parts = 2, bytes[] = {2, 16}, codes = 1;

  static void decode(const Row& row, int64_t run, Floats* out) {
    look_up(row.as<uint8_t>(1, run * 16), IQ4_VALUES, half(*row.as<uint16_t>(0, run)), out);
  }
};

// Parts e [1], qs [16]: 2^(e - 127) * value of the code.
struct MXFP4 {
  static constexpr int block = 32, parts = 2, bytes[] = {1, 16}, codes = 1;

  static void decode(const Row& row, int64_t run, Floats* out) {
    look_up(row.as<uint8_t>(1, run * 16), E2M1_DOUBLED, power(*row.as<uint8_t>(0, run)), out);
  }
};

// Part values [1]: bfloat16, whose bits are the upper half of a float's.
struct BF16 {
  static constexpr int block = 32, parts = 1, bytes[] = {64}, codes = 0;

  static void decode(const Row& row, int64_t run, Floats* out) {
    const uint16_t* from = row.as<uint16_t>(0, run * RUN);
    for (int i = 0; i < RUNS; ++i) out[i] = bits(widen(from + i * WIDTH) << 16);
  }
};

// Part values [1]: float16.
struct F16 {
  static constexpr int block = 32, parts = 1, bytes[] = {64}, codes = 0;

  static void decode(const Row& row, int64_t run, Floats* out) {
    const uint16_t* from = row.as<uint16_t>(0, run * RUN);
    for (int i = 0; i < RUNS; ++i) out[i] = halves(from + i * WIDTH);
  }
};

}  // namespace forge
