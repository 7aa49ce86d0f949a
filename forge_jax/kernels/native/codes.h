// Codes of a byte each for as many rows of weights as a vector has lanes, and their products with signed bytes. Lane i
// belongs to row i, and has four neighbours.
#pragma once

#include "vectors.h"

namespace forge {

typedef uint8_t Bytes __attribute__((vector_size(4 * WIDTH)));

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
  return reinterpret_cast<Bytes>(all(word));
}

// 16 where bit i is set for byte i, of as many bits as a vector has bytes.
inline Bytes sixteens(const uint8_t* from) {
#if defined(FORGE_AVX512)
  uint64_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return reinterpret_cast<Bytes>(_mm512_maskz_set1_epi8(bits, 16));
#else
  Bytes v, bit;
  for (int i = 0; i < 4 * WIDTH; ++i) bit[i] = 1 << i % 8;
#if defined(FORGE_AVX2)
  uint32_t bits;
  std::memcpy(&bits, from, sizeof bits);
  const __m256i place = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  v = reinterpret_cast<Bytes>(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), place));
#else
  for (int i = 0; i < 4 * WIDTH; ++i) v[i] = from[i / 8];
#endif
  return reinterpret_cast<Bytes>((v & bit) == bit) & 16;
#endif
}

// table[code] for codes of 4 bits; bits above those must be zero.
inline Bytes chosen(const uint8_t* table, Bytes codes) {
#if defined(FORGE_AVX512)
  const __m512i often = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return reinterpret_cast<Bytes>(_mm512_shuffle_epi8(often, reinterpret_cast<__m512i>(codes)));
#elif defined(FORGE_AVX2)
  const __m256i often = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return reinterpret_cast<Bytes>(_mm256_shuffle_epi8(often, reinterpret_cast<__m256i>(codes)));
#elif defined(FORGE_NEON)
  return reinterpret_cast<Bytes>(vqtbl1q_u8(vld1q_u8(table), reinterpret_cast<uint8x16_t>(codes)));
#else
  Bytes v;
  for (int i = 0; i < 4 * WIDTH; ++i) v[i] = table[codes[i]];
  return v;
#endif
}

// The sums of codes x numbers of four neighbours; codes may not be above 127.
#if defined(FORGE_AVX512)
inline Ints fours(Bytes codes, Bytes numbers) {
  const __m512i two = _mm512_maddubs_epi16(reinterpret_cast<__m512i>(codes), reinterpret_cast<__m512i>(numbers));
  return reinterpret_cast<Ints>(_mm512_madd_epi16(two, _mm512_set1_epi16(1)));
}
#elif defined(FORGE_AVX2)
inline Ints fours(Bytes codes, Bytes numbers) {
  const __m256i two = _mm256_maddubs_epi16(reinterpret_cast<__m256i>(codes), reinterpret_cast<__m256i>(numbers));
  return reinterpret_cast<Ints>(_mm256_madd_epi16(two, _mm256_set1_epi16(1)));
}
#elif defined(__ARM_FEATURE_DOTPROD)
inline Ints fours(Bytes codes, Bytes numbers) {
  const int8x16_t code = reinterpret_cast<int8x16_t>(codes), number = reinterpret_cast<int8x16_t>(numbers);
  return reinterpret_cast<Ints>(vdotq_s32(vdupq_n_s32(0), code, number));
}
#else
// a function by itself: as a loop in every place it would take compilers minutes
__attribute__((noinline)) inline Ints fours(Bytes codes, Bytes numbers) {
  Ints sums{};
  for (int i = 0; i < 4 * WIDTH; ++i) sums[i / FOUR] += codes[i] * static_cast<int8_t>(numbers[i]);
  return sums;
}
#endif

// sums + codes x four signed numbers, the same for every row. EIGHTH: whether codes may be above 127.
template <bool EIGHTH>
inline __attribute__((always_inline)) Ints dot_four(Ints sums, Bytes codes, const int8_t* numbers) {
#if defined(FORGE_AVX512) && defined(__AVX512VNNI__)
  // in words, since compilers load the four by an instruction of its own
  typedef int32_t Word __attribute__((may_alias, aligned(4)));
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sums) : "v"(codes), "m"(*reinterpret_cast<const Word*>(numbers)));
  return sums;
#elif defined(__ARM_FEATURE_MATMUL_INT8)
  const int32x4_t sum = reinterpret_cast<int32x4_t>(sums);
  const Bytes number = four(numbers);
  return reinterpret_cast<Ints>(
      vusdotq_s32(sum, reinterpret_cast<uint8x16_t>(codes), reinterpret_cast<int8x16_t>(number)));
#else
  const Bytes number = four(numbers);
  if (!EIGHTH) return sums + fours(codes, number);
  return sums + fours(codes & 127, number) + (fours((codes & 128) >> 1, number) << 1);
#endif
}

}  // namespace forge
