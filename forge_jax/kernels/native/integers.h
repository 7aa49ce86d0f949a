// Integers of 4 and 8 bits with a scale, and maybe a zero, for groups of whole runs: value = scale * (code - zero). A part
// that has no bytes a block has a float32 a group.
#pragma once

#include "tiles.h"

namespace forge {

// Rows by themselves: parts scale, zero, codes.
template <class Own, int size>
struct Stepped {
  static constexpr int block = 32, parts = 3, bytes[] = {0, 0, size}, codes = 2;

  static void decode(const Row& row, int64_t run, Floats* out) {
    const int64_t group = row.group(run);
    const Floats scale = all(*row.as<float>(0, group)), zero = all(*row.as<float>(1, group));
    Ints code[RUNS];
    Own::take(row, run, code);
    for (int i = 0; i < RUNS; ++i) out[i] = (floats(code[i]) - zero) * scale;
  }
};

// Neighbours share a byte, the first one in its low half.
struct Stream4 : Stepped<Stream4, 16> {
  static void take(const Row& row, int64_t run, Ints* code) {
    neighbours(row.as<uint8_t>(2, run * 16), code);
  }
};

struct Signed8 : Stepped<Signed8, 32> {
  static void take(const Row& row, int64_t run, Ints* code) {
    for (int i = 0; i < RUNS; ++i) code[i] = widen(row.as<int8_t>(2, run * RUN + i * WIDTH));
  }
};

struct Unsigned8 : Stepped<Unsigned8, 32> {
  static void take(const Row& row, int64_t run, Ints* code) {
    for (int i = 0; i < RUNS; ++i) code[i] = widen(row.as<uint8_t>(2, run * RUN + i * WIDTH));
  }
};

// The same in tiles (forge_jax/quantization/tiles.py), for rounded products only.

// Parts scale, codes [16], the second half of a run in the high halves of bytes; the zero is 8.
struct I4 {
  static constexpr int block = 32, parts = 2, bytes[] = {0, 16}, codes = 1;
};

// Parts scale, zero, codes [16].
struct I4_ZERO {
  static constexpr int block = 32, parts = 3, bytes[] = {0, 0, 16}, codes = 2;
};

// Parts scale, codes [32], signed; the zero is 0.
struct I8 {
  static constexpr int block = 32, parts = 2, bytes[] = {0, 32}, codes = 1;
};

// Parts scale, zero, codes [32], not signed.
struct I8_ZERO {
  static constexpr int block = 32, parts = 3, bytes[] = {0, 0, 32}, codes = 2;
};

// The numbers of all rows for the group of a run.
inline Floats of_group(const Rows& rows, int i, int64_t run) { return load(rows.of<float>(i, rows.group(run))); }

struct GroupScaled {
  static constexpr int PIECES = 1;

  static Floats scale(const Rows& rows, int64_t run) { return of_group(rows, 0, run); }
};

struct GroupShifted : GroupScaled {
  static constexpr int ZERO = 0;

  static Floats shift(const Rows& rows, int64_t run) { return -of_group(rows, 0, run) * of_group(rows, 1, run); }
};

template <>
struct Tiled<I4> : GroupScaled {
  static constexpr int ZERO = 8;

  static Bytes coded(const Rows& rows, int64_t run, int j) { return half_bytes(rows, 1, run, j); }
};

template <>
struct Tiled<I4_ZERO> : GroupShifted {
  static Bytes coded(const Rows& rows, int64_t run, int j) { return half_bytes(rows, 2, run, j); }
};

template <>
struct Tiled<I8> : GroupScaled {
  static constexpr int ZERO = 128;

  static Bytes coded(const Rows& rows, int64_t run, int j) { return unit(rows, 1, run * 8 + j) ^ 128; }
};

template <>
struct Tiled<I8_ZERO> : GroupShifted {
  static Bytes coded(const Rows& rows, int64_t run, int j) { return unit(rows, 2, run * 8 + j); }
};

}  // namespace forge
