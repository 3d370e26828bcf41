; hand
; M <= 20, N = 10, K = 40 in chunks of 16, out float32
; sparqle, int8 in window signed, int4 weights, no offset
; small: 4 x 4 PEs, 8 lanes of 4 bits
; ACT 8192 bytes
;   lsb      2 x 64       at 0
;   pbm      2 x 16       at 128
;   msb      2 x 64       at 160
;   row      2 x 32       at 288
; WGT 8192 bytes
;   wgt      2 x 32       at 0
;   chn      2 x 16       at 64
; ACC 16384 bytes
;   acc      2 x 128      at 0
; tokens ACT_FREE 2, WGT_FREE 2, ACC_FREE 2, ROW_FREE 2, CHN_FREE 2
 0: LOOP     i0 < n0 = ceil(M / 8)
 1:   LOOP     i1 < n1 = ceil(10 / 4)
 2:     WAIT     MMA, ACC_FREE
 3:     LOOP     i2 < n2 = ceil(40 / 16)
 4:       WAIT     LOAD, ACT_FREE
 5:       LD.LSB   ACT[0 + 64*(((i0*n1 + i1)*n2 + i2) mod 2)] <- LSB[8*i0 : +min(8, M - 8*i0), 16*i2 : +min(16, 40 - 16*i2)]
 6:       LD.PBM   ACT[128 + 16*(((i0*n1 + i1)*n2 + i2) mod 2)] <- PBM[8*i0 : +min(8, M - 8*i0), 16*i2 : +min(16, 40 - 16*i2)]
 7:       LD.MSB   ACT[160 + 64*(((i0*n1 + i1)*n2 + i2) mod 2)] <- MSB[8*i0 : +min(8, M - 8*i0), 16*i2 : +min(16, 40 - 16*i2)]
 8:       SIGNAL   LOAD, ACT_READY
 9:       WAIT     MMA, ACT_READY
10:       WAIT     LOAD, WGT_FREE
11:       LD.WGT   WGT[0 + 32*(((i0*n1 + i1)*n2 + i2) mod 2)] <- WGT[4*i1 : +min(4, 10 - 4*i1), 16*i2 : +min(16, 40 - 16*i2)]
12:       SIGNAL   LOAD, WGT_READY
13:       WAIT     MMA, WGT_READY
14:       MMA.LSB  acc=ACC[0 + 128*((i0*n1 + i1) mod 2)], lsb=ACT[0 + 64*(((i0*n1 + i1)*n2 + i2) mod 2)], wgt=WGT[0 + 32*(((i0*n1 + i1)*n2 + i2) mod 2)], grp=None, m=min(8, M - 8*i0), n=min(4, 10 - 4*i1), k=min(16, 40 - 16*i2), zero=i2 == 0, row_split=1
15:       MMA.MSB  acc=ACC[0 + 128*((i0*n1 + i1) mod 2)], pbm=ACT[128 + 16*(((i0*n1 + i1)*n2 + i2) mod 2)], msb=ACT[160 + 64*(((i0*n1 + i1)*n2 + i2) mod 2)], zro=None, wgt=WGT[0 + 32*(((i0*n1 + i1)*n2 + i2) mod 2)], grp=None, m=min(8, M - 8*i0), n=min(4, 10 - 4*i1), k=min(16, 40 - 16*i2), zero=never, row_split=1
16:       SIGNAL   MMA, ACT_FREE
17:       SIGNAL   MMA, WGT_FREE
18:     END ; i2
19:     SIGNAL   MMA, ACC_READY
20:     WAIT     LOAD, ROW_FREE
21:     LD.ROW   ACT[288 + 32*((i0*n1 + i1) mod 2)] <- ROWS[8*i0 : +min(8, M - 8*i0)]
22:     SIGNAL   LOAD, ROW_READY
23:     WAIT     LOAD, CHN_FREE
24:     LD.CHN   WGT[64 + 16*((i0*n1 + i1) mod 2)] <- CHANNELS[4*i1 : +min(4, 10 - 4*i1)]
25:     SIGNAL   LOAD, CHN_READY
26:     WAIT     STORE, ACC_READY
27:     WAIT     STORE, ROW_READY
28:     WAIT     STORE, CHN_READY
29:     DRAIN    acc=ACC[0 + 128*((i0*n1 + i1) mod 2)], row=ACT[288 + 32*((i0*n1 + i1) mod 2)], chn=WGT[64 + 16*((i0*n1 + i1) mod 2)], m=min(8, M - 8*i0), n=min(4, 10 - 4*i1)
30:     SIGNAL   STORE, ROW_FREE
31:     SIGNAL   STORE, CHN_FREE
32:     ST.OUT   OUT[8*i0 : +min(8, M - 8*i0), 4*i1 : +min(4, 10 - 4*i1)] <- ACC[0 + 128*((i0*n1 + i1) mod 2)]
33:     SIGNAL   STORE, ACC_FREE
34:   END ; i1
35: END ; i0
