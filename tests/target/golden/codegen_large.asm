; large
; M <= 4096, N = 11008, K = 4096 in chunks of 592, out float32
; sparqle, int8 in window signed, int8 weights, no offset
; sparqle/edge: 16 x 16 PEs, 16 lanes of 4 bits
; ACT 524288 bytes
;   row      2 x 1408     at 0
;   lsb      2 x 104192   at 2816
;   pbm      2 x 26048    at 211200
;   msb      2 x 104192   at 263296
; WGT 524288 bytes
;   chn      2 x 1472     at 0
;   wgt      2 x 217856   at 2944
; ACC 1048576 bytes
;   acc      2 x 518144   at 0
; tokens ACT_FREE 2, WGT_FREE 2, ACC_FREE 2, ROW_FREE 2, CHN_FREE 2
 0: LOOP     i0 < n0 = ceil(M / 352)
 1:   WAIT     LOAD, ROW_FREE
 2:   LD.ROW   ACT[0 + 1408*(i0 mod 2)] <- ROWS[352*i0 : +min(352, M - 352*i0)]
 3:   SIGNAL   LOAD, ROW_READY
 4:   WAIT     STORE, ROW_READY
 5:   LOOP     i1 < n1 = ceil(11008 / 368)
 6:     WAIT     MMA, ACC_FREE
 7:     LOOP     i2 < n2 = ceil(4096 / 592)
 8:       WAIT     LOAD, ACT_FREE
 9:       LD.LSB   ACT[2816 + 104192*(((i0*n1 + i1)*n2 + i2) mod 2)] <- LSB[352*i0 : +min(352, M - 352*i0), 592*i2 : +min(592, 4096 - 592*i2)]
10:       LD.PBM   ACT[211200 + 26048*(((i0*n1 + i1)*n2 + i2) mod 2)] <- PBM[352*i0 : +min(352, M - 352*i0), 592*i2 : +min(592, 4096 - 592*i2)]
11:       LD.MSB   ACT[263296 + 104192*(((i0*n1 + i1)*n2 + i2) mod 2)] <- MSB[352*i0 : +min(352, M - 352*i0), 592*i2 : +min(592, 4096 - 592*i2)]
12:       SIGNAL   LOAD, ACT_READY
13:       WAIT     LOAD, WGT_FREE
14:       LD.WGT   WGT[2944 + 217856*(((i0*n1 + i1)*n2 + i2) mod 2)] <- WGT[368*i1 : +min(368, 11008 - 368*i1), 592*i2 : +min(592, 4096 - 592*i2)]
15:       SIGNAL   LOAD, WGT_READY
16:       WAIT     MMA, ACT_READY
17:       WAIT     MMA, WGT_READY
18:       MMA.LSB  acc=ACC[0 + 518144*((i0*n1 + i1) mod 2)], lsb=ACT[2816 + 104192*(((i0*n1 + i1)*n2 + i2) mod 2)], wgt=WGT[2944 + 217856*(((i0*n1 + i1)*n2 + i2) mod 2)], grp=None, m=min(352, M - 352*i0), n=min(368, 11008 - 368*i1), k=min(592, 4096 - 592*i2), zero=i2 == 0, row_split=1
19:       MMA.MSB  acc=ACC[0 + 518144*((i0*n1 + i1) mod 2)], pbm=ACT[211200 + 26048*(((i0*n1 + i1)*n2 + i2) mod 2)], msb=ACT[263296 + 104192*(((i0*n1 + i1)*n2 + i2) mod 2)], zro=None, wgt=WGT[2944 + 217856*(((i0*n1 + i1)*n2 + i2) mod 2)], grp=None, m=min(352, M - 352*i0), n=min(368, 11008 - 368*i1), k=min(592, 4096 - 592*i2), zero=never, row_split=1
20:       SIGNAL   MMA, ACT_FREE
21:       SIGNAL   MMA, WGT_FREE
22:     END ; i2
23:     SIGNAL   MMA, ACC_READY
24:     WAIT     LOAD, CHN_FREE
25:     LD.CHN   WGT[0 + 1472*((i0*n1 + i1) mod 2)] <- CHANNELS[368*i1 : +min(368, 11008 - 368*i1)]
26:     SIGNAL   LOAD, CHN_READY
27:     WAIT     STORE, CHN_READY
28:     WAIT     STORE, ACC_READY
29:     DRAIN    acc=ACC[0 + 518144*((i0*n1 + i1) mod 2)], row=ACT[0 + 1408*(i0 mod 2)], chn=WGT[0 + 1472*((i0*n1 + i1) mod 2)], m=min(352, M - 352*i0), n=min(368, 11008 - 368*i1)
30:     SIGNAL   STORE, CHN_FREE
31:     ST.OUT   OUT[352*i0 : +min(352, M - 352*i0), 368*i1 : +min(368, 11008 - 368*i1)] <- ACC[0 + 518144*((i0*n1 + i1) mod 2)]
32:     SIGNAL   STORE, ACC_FREE
33:   END ; i1
34:   SIGNAL   STORE, ROW_FREE
35: END ; i0
