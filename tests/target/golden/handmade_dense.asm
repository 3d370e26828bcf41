; hand
; M <= 20, N = 10, K = 40 in chunks of 16, out int32
; dense, int8 in window unsigned, int8 weights, no offset
; small: 4 x 4 PEs, 8 lanes of 4 bits
; ACT 8192 bytes
;   lsb      2 x 64       at 0
;   msb      2 x 64       at 128
; WGT 8192 bytes
;   wgt      2 x 64       at 0
; ACC 16384 bytes
;   acc      2 x 128      at 0
; tokens ACT_FREE 2, WGT_FREE 2, ACC_FREE 2
 0: LOOP     i0 < n0 = ceil(10 / 4)
 1:   LOOP     i1 < n1 = ceil(M / 8)
 2:     WAIT     MMA, ACC_FREE
 3:     LOOP     i2 < n2 = ceil(40 / 16)
 4:       WAIT     LOAD, ACT_FREE
 5:       LD.ACT   ACT[0 + 64*(((i0*n1 + i1)*n2 + i2) mod 2)], ACT[128 + 64*(((i0*n1 + i1)*n2 + i2) mod 2)] <- ACT[8*i1 : +min(8, M - 8*i1), 16*i2 : +min(16, 40 - 16*i2)]
 6:       SIGNAL   LOAD, ACT_READY
 7:       WAIT     MMA, ACT_READY
 8:       WAIT     LOAD, WGT_FREE
 9:       LD.WGT   WGT[0 + 64*(((i0*n1 + i1)*n2 + i2) mod 2)] <- WGT[4*i0 : +min(4, 10 - 4*i0), 16*i2 : +min(16, 40 - 16*i2)]
10:       SIGNAL   LOAD, WGT_READY
11:       WAIT     MMA, WGT_READY
12:       MMA.LSB  acc=ACC[0 + 128*((i0*n1 + i1) mod 2)], lsb=ACT[0 + 64*(((i0*n1 + i1)*n2 + i2) mod 2)], wgt=WGT[0 + 64*(((i0*n1 + i1)*n2 + i2) mod 2)], grp=None, m=min(8, M - 8*i1), n=min(4, 10 - 4*i0), k=min(16, 40 - 16*i2), zero=i2 == 0, row_split=1
13:       MMA.DNS  acc=ACC[0 + 128*((i0*n1 + i1) mod 2)], msb=ACT[128 + 64*(((i0*n1 + i1)*n2 + i2) mod 2)], wgt=WGT[0 + 64*(((i0*n1 + i1)*n2 + i2) mod 2)], grp=None, m=min(8, M - 8*i1), n=min(4, 10 - 4*i0), k=min(16, 40 - 16*i2), zero=never, row_split=1
14:       SIGNAL   MMA, ACT_FREE
15:       SIGNAL   MMA, WGT_FREE
16:     END ; i2
17:     SIGNAL   MMA, ACC_READY
18:     WAIT     STORE, ACC_READY
19:     DRAIN    acc=ACC[0 + 128*((i0*n1 + i1) mod 2)], row=None, chn=None, m=min(8, M - 8*i1), n=min(4, 10 - 4*i0)
20:     ST.OUT   OUT[8*i1 : +min(8, M - 8*i1), 4*i0 : +min(4, 10 - 4*i0)] <- ACC[0 + 128*((i0*n1 + i1) mod 2)]
21:     SIGNAL   STORE, ACC_FREE
22:   END ; i1
23: END ; i0
