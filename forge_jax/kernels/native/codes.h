// Codes of a byte each, four runs of 32 at a time, and their products with signed bytes, in vectors of 64 bytes: one
// register where there is AVX-512 and several elsewhere.
#pragma once

#include <algorithm>

#include "vectors.h"

namespace forge {

typedef uint8_t Bytes __attribute__((vector_size(64)));
typedef int32_t Sums __attribute__((vector_size(64)));
typedef float Sixteen __attribute__((vector_size(64)));

constexpr int QUAD = 4;  // runs

// Four runs: the first 16 codes of each, and the second 16. Sums of four products each then belong to one run, lanes 0
// to 3 to the first and so on, and both halves add up in the same lanes.
struct Quad {
  Bytes first, second;
};

inline Quad operator^(Quad q, uint8_t bits) { return {q.first ^ bits, q.second ^ bits}; }

// `count` bytes and zeros behind them; nothing is read beyond.
inline Bytes some_bytes(const void* from, int count) {
  Bytes v{};
  if (count == sizeof v) {
    std::memcpy(&v, from, sizeof v);
    return v;
  }
#if defined(FORGE_AVX512)
  return reinterpret_cast<Bytes>(_mm512_maskz_loadu_epi8((1ull << count) - 1, from));
#else
  std::memcpy(&v, from, count);
  return v;
#endif
}

// Runs of 32 bytes; those beyond `runs` are zero.
inline Quad whole_bytes(const uint8_t* from, int runs) {
#if defined(FORGE_AVX512)
  const __m512i low = reinterpret_cast<__m512i>(some_bytes(from, std::min(runs, 2) * 32));
  const __m512i high = reinterpret_cast<__m512i>(some_bytes(from + 64, std::max(runs - 2, 0) * 32));
  return {reinterpret_cast<Bytes>(_mm512_shuffle_i64x2(low, high, 0x88)),
          reinterpret_cast<Bytes>(_mm512_shuffle_i64x2(low, high, 0xdd))};
#else
  uint8_t first[64] = {}, second[64] = {};
  for (int i = 0; i < runs; ++i) std::memcpy(first + 16 * i, from + 32 * i, 16);
  for (int i = 0; i < runs; ++i) std::memcpy(second + 16 * i, from + 32 * i + 16, 16);
  return {some_bytes(first, 64), some_bytes(second, 64)};
#endif
}

// Runs of 16 bytes, whose low halves are the first codes and whose high halves the second.
inline Quad nibbles(const uint8_t* from, int runs) {
  const Bytes both = some_bytes(from, runs * 16);
  return {both & 15, both >> 4};
}

// 16 where bit i of 8 bytes is set for byte i.
inline Bytes sixteens(uint64_t bits) {
#if defined(FORGE_AVX512)
  return reinterpret_cast<Bytes>(_mm512_maskz_set1_epi8(bits, 16));
#else
  Bytes v;
  for (int i = 0; i < 64; ++i) v[i] = (bits >> i & 1) << 4;
  return v;
#endif
}

// The fifth bits of codes, from a word for each run.
inline Quad with_fifth_bits(Quad q, const uint8_t* words, int runs) {
  uint64_t first = 0, second = 0;
  for (int i = 0; i < runs; ++i) {
    uint32_t word;
    std::memcpy(&word, words + 4 * i, sizeof word);
    first |= static_cast<uint64_t>(word & 0xffff) << 16 * i;
    second |= static_cast<uint64_t>(word >> 16) << 16 * i;
  }
  return {q.first | sixteens(first), q.second | sixteens(second)};
}

// table[code] for codes of 4 bits; bits above those must be zero.
inline Bytes chosen(const uint8_t* table, Bytes codes) {
#if defined(FORGE_AVX512)
  const __m512i often = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return reinterpret_cast<Bytes>(_mm512_shuffle_epi8(often, reinterpret_cast<__m512i>(codes)));
#else
  Bytes v;
  for (int i = 0; i < 64; ++i) v[i] = table[codes[i]];
  return v;
#endif
}

inline Quad chosen(const uint8_t* table, Quad q) { return {chosen(table, q.first), chosen(table, q.second)}; }

// sums + codes x numbers, four neighbours in a sum.
inline Sums dot(Sums sums, Bytes codes, Bytes numbers) {
#if defined(FORGE_AVX512) && defined(__AVX512VNNI__)
  return reinterpret_cast<Sums>(_mm512_dpbusd_epi32(
      reinterpret_cast<__m512i>(sums), reinterpret_cast<__m512i>(codes), reinterpret_cast<__m512i>(numbers)));
#elif defined(FORGE_AVX512) || defined(FORGE_AVX2)
  __m256i sum[2], code[2], number[2];
  std::memcpy(sum, &sums, sizeof sums);
  std::memcpy(code, &codes, sizeof codes);
  std::memcpy(number, &numbers, sizeof numbers);
  const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi8(127);
  for (int i = 0; i < 2; ++i) {
    // two products of 7 bits each, or of the eighth, fit 16 bits
    const __m256i small = _mm256_maddubs_epi16(_mm256_and_si256(code[i], low), number[i]);
    const __m256i large = _mm256_maddubs_epi16(_mm256_andnot_si256(low, code[i]), number[i]);
    sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(small, ones));
    sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(large, ones));
  }
  std::memcpy(&sums, sum, sizeof sums);
  return sums;
#else
  for (int i = 0; i < 64; ++i) sums[i / 4] += codes[i] * static_cast<int8_t>(numbers[i]);
  return sums;
#endif
}

inline Sums dot(Sums sums, const Quad& codes, const Quad& numbers) {
  return dot(dot(sums, codes.first, numbers.first), codes.second, numbers.second);
}

// `count` numbers of float16 and zeros behind them; nothing is read beyond.
inline Sixteen some_halves(const uint16_t* from, int count) {
#if defined(FORGE_AVX512)
  const __m512i some = reinterpret_cast<__m512i>(some_bytes(from, count * 2));
  return reinterpret_cast<Sixteen>(_mm512_cvtph_ps(_mm512_castsi512_si256(some)));
#else
  Sixteen v{};
  for (int i = 0; i < count; ++i) v[i] = half(from[i]);
  return v;
#endif
}

// The four numbers of a quad, each in the lanes of its run.
inline Sixteen spread(Sixteen v, int quad) {
#if defined(FORGE_AVX512)
  const __m512i base = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  const __m512i index = _mm512_add_epi32(base, _mm512_set1_epi32(4 * quad));
  return reinterpret_cast<Sixteen>(_mm512_permutexvar_ps(index, reinterpret_cast<__m512>(v)));
#else
  Sixteen made;
  for (int i = 0; i < 16; ++i) made[i] = v[4 * quad + i / 4];
  return made;
#endif
}

inline Sixteen sixteen(Sums v) { return __builtin_convertvector(v, Sixteen); }

// The sums of all lanes of each of four, each added up in the same order.
inline void totals(const Sixteen* four, float* to) {
#if defined(FORGE_AVX512)
  __m512 v[4];
  std::memcpy(v, four, sizeof v);
  const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
  const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
  const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b));
  const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b));
  const __m512 all = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
  const __m128 left = _mm_add_ps(_mm512_extractf32x4_ps(all, 0), _mm512_extractf32x4_ps(all, 1));
  const __m128 right = _mm_add_ps(_mm512_extractf32x4_ps(all, 2), _mm512_extractf32x4_ps(all, 3));
  _mm_storeu_ps(to, _mm_add_ps(left, right));
#else
  for (int i = 0; i < 4; ++i) {
    float sum = 0;
    for (int lane = 0; lane < 16; ++lane) sum += four[i][lane];
    to[i] = sum;
  }
#endif
}

}  // namespace forge
