// Products by Hopper's wgmma: four warps multiply together, 64 rows at a time, with operands where they lie in shared memory.
#pragma once
#include "matrix.cuh"

// What lies so many bytes into a matrix, as wgmma is told of it: address, distance of blocks of columns, of eight rows, swizzle.
template <class M> DEVICE u64 descriptor(M m, int offset) {
  static_assert(M::ROW == 128, "the swizzle of 128 bytes");
  constexpr u64 SWIZZLE = 1, EIGHT_ROWS = 8 * M::ROW / 16, BLOCK = M::BLOCK_BYTES / 16;
  return SWIZZLE << 62 | EIGHT_ROWS << 32 | BLOCK << 16 | (((m.base & 0x3ffff) >> 4) + offset / 16);
}
// Sixteen rows of eight columns, 16 bytes each: no swizzle, and eight rows to the next, by either name of that distance.
DEVICE u64 narrow_descriptor(u32 at) { return (u64)8 << 32 | (u64)8 << 16 | (at & 0x3ffff) >> 4; }

// c (+)= a b, 64 x N of 64 x 16 times 16 x N, for N of 8, 64 and 128. A_TRANSPOSED: A's columns lie one after the other, not its
// rows. B_BY_ROWS: B's rows of N do, not its columns. An A in registers is as that of mma.sync, 16 rows to a warp. Without
// `adds` what c held does not count.
#define SUMS(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define EIGHT_SUMS(i) SUMS(i), SUMS(i + 1), SUMS(i + 2), SUMS(i + 3), SUMS(i + 4), SUMS(i + 5), SUMS(i + 6), SUMS(i + 7)
#define NUMBERS_32 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define NUMBERS_64 \
  NUMBERS_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58," \
             "%59,%60,%61,%62,%63"
#define WGMMA(n, adds) \
  "{.reg .pred add; setp.ne.b32 add, " adds ", 0; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 "

// Sums and fragments are in their registers from here on. Between a fence and the wait no other instruction may touch them.
DEVICE void settle(float (&c)[4]) { asm volatile("" : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])); }
DEVICE void settle(float (&c)[8][4]) { asm volatile("" : EIGHT_SUMS(0)); }
DEVICE void settle(float (&c)[16][4]) { asm volatile("" : EIGHT_SUMS(0), EIGHT_SUMS(8)); }
DEVICE void settle(u32 (&a)[4]) { asm volatile("" : "+r"(a[0]), "+r"(a[1]), "+r"(a[2]), "+r"(a[3])); }
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }

template <bool A_TRANSPOSED, bool B_BY_ROWS> DEVICE void wgmma(float (&c)[4], u64 a, u64 b, bool adds) {
  asm volatile(WGMMA(8, "%6") "{%0,%1,%2,%3}, %4, %5, add, 1, 1, %7, %8;}"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "l"(a), "l"(b), "r"((int)adds), "n"(A_TRANSPOSED), "n"(B_BY_ROWS));
}
template <bool A_TRANSPOSED, bool B_BY_ROWS> DEVICE void wgmma(float (&c)[8][4], u64 a, u64 b, bool adds) {
  asm volatile(WGMMA(64, "%34") "{" NUMBERS_32 "}, %32, %33, add, 1, 1, %35, %36;}"
               : EIGHT_SUMS(0)
               : "l"(a), "l"(b), "r"((int)adds), "n"(A_TRANSPOSED), "n"(B_BY_ROWS));
}
template <bool A_TRANSPOSED, bool B_BY_ROWS> DEVICE void wgmma(float (&c)[16][4], u64 a, u64 b, bool adds) {
  asm volatile(WGMMA(128, "%66") "{" NUMBERS_64 "}, %64, %65, add, 1, 1, %67, %68;}"
               : EIGHT_SUMS(0), EIGHT_SUMS(8)
               : "l"(a), "l"(b), "r"((int)adds), "n"(A_TRANSPOSED), "n"(B_BY_ROWS));
}
template <bool B_BY_ROWS> DEVICE void wgmma(float (&c)[4], const u32 (&a)[4], u64 b, bool adds) {
  asm volatile(WGMMA(8, "%9") "{%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, add, 1, 1, %10;}"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)adds), "n"(B_BY_ROWS));
}
template <bool B_BY_ROWS> DEVICE void wgmma(float (&c)[8][4], const u32 (&a)[4], u64 b, bool adds) {
  asm volatile(WGMMA(64, "%37") "{" NUMBERS_32 "}, {%32,%33,%34,%35}, %36, add, 1, 1, %38;}"
               : EIGHT_SUMS(0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)adds), "n"(B_BY_ROWS));
}
template <bool B_BY_ROWS> DEVICE void wgmma(float (&c)[16][4], const u32 (&a)[4], u64 b, bool adds) {
  asm volatile(WGMMA(128, "%69") "{" NUMBERS_64 "}, {%64,%65,%66,%67}, %68, add, 1, 1, %70;}"
               : EIGHT_SUMS(0), EIGHT_SUMS(8)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)adds), "n"(B_BY_ROWS));
}

// Four 8 x 8 matrices from registers; lane i says where row i % 8 of matrix i / 8 goes.
DEVICE void store4(u32 at, const u32 (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};"
               ::"r"(at), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}
