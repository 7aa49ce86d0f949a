// Codes of a byte each for 16 rows of weights at once, and their products with signed bytes, in vectors of 64 bytes:
// one register where there is AVX-512 and several elsewhere. Lane i of 16 belongs to row i, and has four neighbours.
#pragma once

#include "vectors.h"

namespace forge {

typedef uint8_t Bytes __attribute__((vector_size(64)));
typedef int32_t Sums __attribute__((vector_size(64)));
typedef float Sixteen __attribute__((vector_size(64)));

constexpr int TOGETHER = 16;  // rows whose codes lie among each other
constexpr int FOUR = 4;       // codes of a row that lie side by side

inline Bytes bytes(const void* from) {
  Bytes v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

inline Bytes low_halves(Bytes v) { return v & 15; }
inline Bytes high_halves(Bytes v) { return v >> 4; }

// Four signed numbers, the same for every row.
inline Bytes four(const int8_t* from) {
  int32_t word;
  std::memcpy(&word, from, sizeof word);
  return reinterpret_cast<Bytes>(word - Sums{});
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

// sums + codes x numbers, four neighbours in a sum. As a loop in every place it would take compilers minutes.
#if defined(FORGE_AVX512) || defined(FORGE_AVX2)
inline
#else
__attribute__((noinline)) static
#endif
Sums dot(Sums sums, Bytes codes, Bytes numbers) {
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

// The same with four signed numbers for every row.
inline Sums dot_four(Sums sums, Bytes codes, const int8_t* numbers) {
#if defined(FORGE_AVX512) && defined(__AVX512VNNI__)
  // in words, since compilers load the four by an instruction of its own
  typedef int32_t Word __attribute__((may_alias, aligned(4)));
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sums) : "v"(codes), "m"(*reinterpret_cast<const Word*>(numbers)));
  return sums;
#else
  return dot(sums, codes, four(numbers));
#endif
}

inline Sixteen sixteen(Sums v) { return __builtin_convertvector(v, Sixteen); }

// 16 numbers of float16.
inline Sixteen sixteen_halves(const uint16_t* from) {
#if defined(FORGE_AVX512)
  return reinterpret_cast<Sixteen>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#else
  Sixteen v;
  for (int i = 0; i < 16; ++i) v[i] = half(from[i]);
  return v;
#endif
}

// 16 signed bytes.
inline Sums sixteen_bytes(const int8_t* from) {
  typedef int8_t Narrow __attribute__((vector_size(16)));
  Narrow v;
  std::memcpy(&v, from, sizeof v);
  return __builtin_convertvector(v, Sums);
}

}  // namespace forge
