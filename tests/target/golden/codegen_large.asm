; large
; M <= 4096, N = 11008, K = 4096 in chunks of 4096, out float32
; sparqle, int8 in window signed, int8 weights, no offset
; sparqle/edge: 16 x 16 PEs, 16 lanes of 4 bits
; a scratchpad of 2097152 bytes
; ACT
;   lsb      2 x 327680   at 0
;   pbm      2 x 81920    at 655360
;   msb      2 x 327680   at 819200
;   row      2 x 640      at 1474560
; WGT
;   wgt      2 x 262144   at 0
;   chn      2 x 256      at 524288
; ACC
;   acc      2 x 40960    at 0
; tokens ACT_FREE 2, WGT_FREE 2, ACC_FREE 2, ROW_FREE 2, CHN_FREE 2
 0: LOOP     i0 < n0 = ceil(M / 160)
 1:   WAIT     LOAD, ACT_FREE
 2:   LD.LSB   ACT[0 + 327680*(i0 mod 2)] <- LSB[160*i0 : +min(160, M - 160*i0), 0 : +4096]
 3:   LD.PBM   ACT[655360 + 81920*(i0 mod 2)] <- PBM[160*i0 : +min(160, M - 160*i0), 0 : +4096]
 4:   LD.MSB   ACT[819200 + 327680*(i0 mod 2)] <- MSB[160*i0 : +min(160, M - 160*i0), 0 : +4096]
 5:   SIGNAL   LOAD, ACT_READY
 6:   WAIT     LOAD, ROW_FREE
 7:   LD.ROW   ACT[1474560 + 640*(i0 mod 2)] <- ROWS[160*i0 : +min(160, M - 160*i0)]
 8:   SIGNAL   LOAD, ROW_READY
 9:   WAIT     MMA, ACT_READY
10:   WAIT     STORE, ROW_READY
11:   LOOP     i1 < n1 = ceil(11008 / 64)
12:     WAIT     LOAD, WGT_FREE
13:     LD.WGT   WGT[0 + 262144*((i0*n1 + i1) mod 2)] <- WGT[64*i1 : +64, 0 : +4096]
14:     SIGNAL   LOAD, WGT_READY
15:     WAIT     MMA, WGT_READY
16:     WAIT     MMA, ACC_FREE
17:     MMA.LSB  acc=ACC[0 + 40960*((i0*n1 + i1) mod 2)], lsb=ACT[0 + 327680*(i0 mod 2)], wgt=WGT[0 + 262144*((i0*n1 + i1) mod 2)], grp=None, m=min(160, M - 160*i0), n=64, k=4096, zero=always, row_split=1
18:     MMA.MSB  acc=ACC[0 + 40960*((i0*n1 + i1) mod 2)], pbm=ACT[655360 + 81920*(i0 mod 2)], msb=ACT[819200 + 327680*(i0 mod 2)], zro=None, wgt=WGT[0 + 262144*((i0*n1 + i1) mod 2)], grp=None, m=min(160, M - 160*i0), n=64, k=4096, zero=never, row_split=1
19:     SIGNAL   MMA, WGT_FREE
20:     SIGNAL   MMA, ACC_READY
21:     WAIT     LOAD, CHN_FREE
22:     LD.CHN   WGT[524288 + 256*((i0*n1 + i1) mod 2)] <- CHANNELS[64*i1 : +64]
23:     SIGNAL   LOAD, CHN_READY
24:     WAIT     STORE, CHN_READY
25:     WAIT     STORE, ACC_READY
26:     DRAIN    acc=ACC[0 + 40960*((i0*n1 + i1) mod 2)], row=ACT[1474560 + 640*(i0 mod 2)], chn=WGT[524288 + 256*((i0*n1 + i1) mod 2)], m=min(160, M - 160*i0), n=64
27:     SIGNAL   STORE, CHN_FREE
28:     ST.OUT   OUT[160*i0 : +min(160, M - 160*i0), 64*i1 : +64] <- ACC[0 + 40960*((i0*n1 + i1) mod 2)]
29:     SIGNAL   STORE, ACC_FREE
30:   END ; i1
31:   SIGNAL   MMA, ACT_FREE
32:   SIGNAL   STORE, ROW_FREE
33: END ; i0
