#include "textflag.h"

// SHA-256 of 16 messages at once: every vector register has one word of each, lane by lane.
//
// Z0 to Z7 are the working variables a to h, Z16 to Z31 the last 16 words of the message schedule, Z8 to Z11 for whatever
// comes. SI: the 16 data pointers; BX: bytes done; CX: blocks left; DI: the state; DX: the constants.

// The bytes of a word are read from the back to the front.
DATA swap<>+0(SB)/8, $0x0405060700010203
DATA swap<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL swap<>(SB), RODATA|NOPTR, $16

// One round. h becomes the next a, d the next e; the others are renamed by whoever comes next. k is the constant's place.
#define ROUND(a, b, c, d, e, f, g, h, w, k) \
	VPADDD      w, h, h            \
	VPADDD.BCST k(R8), h, h        \
	VPRORD      $6, e, Z8          \
	VPRORD      $11, e, Z9         \
	VPRORD      $25, e, Z10        \
	VPTERNLOGD  $0x96, Z8, Z9, Z10 \ // e>>>6 ^ e>>>11 ^ e>>>25
	VMOVDQA32   e, Z11             \
	VPTERNLOGD  $0xca, g, f, Z11   \ // e ? f : g
	VPADDD      Z10, h, h          \
	VPADDD      Z11, h, h          \
	VPADDD      h, d, d            \
	VPRORD      $2, a, Z8          \
	VPRORD      $13, a, Z9         \
	VPRORD      $22, a, Z10        \
	VPTERNLOGD  $0x96, Z8, Z9, Z10 \ // a>>>2 ^ a>>>13 ^ a>>>22
	VMOVDQA32   a, Z11             \
	VPTERNLOGD  $0xe8, c, b, Z11   \ // the majority of a, b, c
	VPADDD      Z10, h, h          \
	VPADDD      Z11, h, h

// The word 16 rounds later, in the place of w0; the others are those 1, 9 and 14 rounds later.
#define SCHEDULE(w0, w1, w9, w14) \
	VPRORD     $7, w1, Z8         \
	VPRORD     $18, w1, Z9        \
	VPSRLD     $3, w1, Z10        \
	VPTERNLOGD $0x96, Z8, Z9, Z10 \
	VPADDD     Z10, w0, w0        \
	VPADDD     w9, w0, w0         \
	VPRORD     $17, w14, Z8       \
	VPRORD     $19, w14, Z9       \
	VPSRLD     $10, w14, Z10      \
	VPTERNLOGD $0x96, Z8, Z9, Z10 \
	VPADDD     Z10, w0, w0

// One row of 16 words of a message, in the processor's byte order. Z0 has swap.
#define ROW(i, z) \
	MOVQ      (8*i)(SI), AX       \
	VMOVDQU32 (AX)(BX*1), z       \
	VPSHUFB   Z0, z, z

// Four rows become four registers with a quarter of each row's words side by side: word by word, then pair by pair.
#define QUARTERS(r0, r1, r2, r3, t0, t1, t2, t3) \
	VPUNPCKLDQ  r1, r0, t0 \
	VPUNPCKHDQ  r1, r0, t1 \
	VPUNPCKLDQ  r3, r2, t2 \
	VPUNPCKHDQ  r3, r2, t3 \
	VPUNPCKLQDQ t2, t0, r0 \
	VPUNPCKHQDQ t2, t0, r1 \
	VPUNPCKLQDQ t3, t1, r2 \
	VPUNPCKHQDQ t3, t1, r3

// The same register of all four groups, whose quarters are words j, 4+j, 8+j and 12+j, becomes these words.
#define WORDS(u0, u1, u2, u3, t0, t1, t2, t3) \
	VSHUFI32X4 $0x88, u1, u0, t0 \
	VSHUFI32X4 $0xdd, u1, u0, t1 \
	VSHUFI32X4 $0x88, u3, u2, t2 \
	VSHUFI32X4 $0xdd, u3, u2, t3 \
	VSHUFI32X4 $0x88, t2, t0, u0 \
	VSHUFI32X4 $0x88, t3, t1, u1 \
	VSHUFI32X4 $0xdd, t2, t0, u2 \
	VSHUFI32X4 $0xdd, t3, t1, u3

#define LOAD(i, z) VMOVDQU32 (64*i)(DI), z

#define STORE(i, z) \
	VPADDD    (64*i)(DI), z, z \
	VMOVDQU32 z, (64*i)(DI)

// func blocks16(state *[8][lanes]uint32, data *[lanes]*byte, n int, k *[64]uint32)
TEXT ·blocks16(SB), NOSPLIT, $0-32
	MOVQ state+0(FP), DI
	MOVQ data+8(FP), SI
	MOVQ n+16(FP), CX
	MOVQ k+24(FP), DX
	XORQ BX, BX

block:
	TESTQ CX, CX
	JZ    done
	VBROADCASTI32X4 swap<>(SB), Z0
	ROW(0, Z16)
	ROW(1, Z17)
	ROW(2, Z18)
	ROW(3, Z19)
	ROW(4, Z20)
	ROW(5, Z21)
	ROW(6, Z22)
	ROW(7, Z23)
	ROW(8, Z24)
	ROW(9, Z25)
	ROW(10, Z26)
	ROW(11, Z27)
	ROW(12, Z28)
	ROW(13, Z29)
	ROW(14, Z30)
	ROW(15, Z31)
	QUARTERS(Z16, Z17, Z18, Z19, Z0, Z1, Z2, Z3)
	QUARTERS(Z20, Z21, Z22, Z23, Z0, Z1, Z2, Z3)
	QUARTERS(Z24, Z25, Z26, Z27, Z0, Z1, Z2, Z3)
	QUARTERS(Z28, Z29, Z30, Z31, Z0, Z1, Z2, Z3)
	WORDS(Z16, Z20, Z24, Z28, Z0, Z1, Z2, Z3)
	WORDS(Z17, Z21, Z25, Z29, Z0, Z1, Z2, Z3)
	WORDS(Z18, Z22, Z26, Z30, Z0, Z1, Z2, Z3)
	WORDS(Z19, Z23, Z27, Z31, Z0, Z1, Z2, Z3)

	LOAD(0, Z0)
	LOAD(1, Z1)
	LOAD(2, Z2)
	LOAD(3, Z3)
	LOAD(4, Z4)
	LOAD(5, Z5)
	LOAD(6, Z6)
	LOAD(7, Z7)
	MOVQ DX, R8
	MOVQ $3, R9

rounds:
	ROUND(Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z16, 0)
	SCHEDULE(Z16, Z17, Z25, Z30)
	ROUND(Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z17, 4)
	SCHEDULE(Z17, Z18, Z26, Z31)
	ROUND(Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z18, 8)
	SCHEDULE(Z18, Z19, Z27, Z16)
	ROUND(Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z19, 12)
	SCHEDULE(Z19, Z20, Z28, Z17)
	ROUND(Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z20, 16)
	SCHEDULE(Z20, Z21, Z29, Z18)
	ROUND(Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z21, 20)
	SCHEDULE(Z21, Z22, Z30, Z19)
	ROUND(Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z22, 24)
	SCHEDULE(Z22, Z23, Z31, Z20)
	ROUND(Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z23, 28)
	SCHEDULE(Z23, Z24, Z16, Z21)
	ROUND(Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z24, 32)
	SCHEDULE(Z24, Z25, Z17, Z22)
	ROUND(Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z25, 36)
	SCHEDULE(Z25, Z26, Z18, Z23)
	ROUND(Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z26, 40)
	SCHEDULE(Z26, Z27, Z19, Z24)
	ROUND(Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z27, 44)
	SCHEDULE(Z27, Z28, Z20, Z25)
	ROUND(Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z28, 48)
	SCHEDULE(Z28, Z29, Z21, Z26)
	ROUND(Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z29, 52)
	SCHEDULE(Z29, Z30, Z22, Z27)
	ROUND(Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z30, 56)
	SCHEDULE(Z30, Z31, Z23, Z28)
	ROUND(Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z31, 60)
	SCHEDULE(Z31, Z16, Z24, Z29)
	ADDQ $64, R8
	DECQ R9
	JNZ  rounds

	ROUND(Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z16, 0)
	ROUND(Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z17, 4)
	ROUND(Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z18, 8)
	ROUND(Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z19, 12)
	ROUND(Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z20, 16)
	ROUND(Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z21, 20)
	ROUND(Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z22, 24)
	ROUND(Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z23, 28)
	ROUND(Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z24, 32)
	ROUND(Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z25, 36)
	ROUND(Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z26, 40)
	ROUND(Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z27, 44)
	ROUND(Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z28, 48)
	ROUND(Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z29, 52)
	ROUND(Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z30, 56)
	ROUND(Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z31, 60)

	STORE(0, Z0)
	STORE(1, Z1)
	STORE(2, Z2)
	STORE(3, Z3)
	STORE(4, Z4)
	STORE(5, Z5)
	STORE(6, Z6)
	STORE(7, Z7)
	ADDQ $64, BX
	DECQ CX
	JMP  block

done:
	VZEROUPPER
	RET
