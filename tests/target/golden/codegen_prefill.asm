; prefill
; M <= 512, N = 1536, K = 576 in chunks of 576, out float32
; sparqle, int8 in window signed, uint4 weights, a scale and a minimum per 32 along K, no offset
; sparqle/edge: 16 x 16 PEs, 16 lanes of 4 bits
; a scratchpad of 2097152 bytes
; ACT
;   lsb      2 x 73728    at 0
;   pbm      2 x 18432    at 147456
;   msb      2 x 73728    at 184320
;   sum      2 x 9216     at 331776
;   row      2 x 1024     at 350208
; WGT
;   wgt      2 x 18432    at 0
;   grp      2 x 4608     at 36864
; ACC
;   acc      2 x 131072   at 0
; tokens ACT_FREE 2, WGT_FREE 2, ACC_FREE 2, ROW_FREE 2
 0: LOOP     i0 < n0 = ceil(M / 256)
 1:   WAIT     LOAD, ACT_FREE
 2:   LD.LSB   ACT[0 + 73728*(i0 mod 2)] <- LSB[256*i0 : +min(256, M - 256*i0), 0 : +576]
 3:   LD.PBM   ACT[147456 + 18432*(i0 mod 2)] <- PBM[256*i0 : +min(256, M - 256*i0), 0 : +576]
 4:   LD.MSB   ACT[184320 + 73728*(i0 mod 2)] <- MSB[256*i0 : +min(256, M - 256*i0), 0 : +576]
 5:   LD.SUM   ACT[331776 + 9216*(i0 mod 2)] <- GROUP_SUMS[256*i0 : +min(256, M - 256*i0), 0 : +576]
 6:   SIGNAL   LOAD, ACT_READY
 7:   WAIT     LOAD, ROW_FREE
 8:   LD.ROW   ACT[350208 + 1024*(i0 mod 2)] <- ROWS[256*i0 : +min(256, M - 256*i0)]
 9:   SIGNAL   LOAD, ROW_READY
10:   WAIT     MMA, ACT_READY
11:   WAIT     STORE, ROW_READY
12:   LOOP     i1 < n1 = ceil(1536 / 64)
13:     WAIT     LOAD, WGT_FREE
14:     LD.WGT   WGT[0 + 18432*((i0*n1 + i1) mod 2)] <- WGT[64*i1 : +64, 0 : +576]
15:     LD.GRP   WGT[36864 + 4608*((i0*n1 + i1) mod 2)] <- W_SCALE[64*i1 : +64, 0 : +576]
16:     SIGNAL   LOAD, WGT_READY
17:     WAIT     MMA, WGT_READY
18:     WAIT     MMA, ACC_FREE
19:     MMA.LSB  acc=ACC[0 + 131072*((i0*n1 + i1) mod 2)], lsb=ACT[0 + 73728*(i0 mod 2)], wgt=WGT[0 + 18432*((i0*n1 + i1) mod 2)], grp=WGT[36864 + 4608*((i0*n1 + i1) mod 2)], m=min(256, M - 256*i0), n=64, k=576, zero=always, row_split=1
20:     MMA.MSB  acc=ACC[0 + 131072*((i0*n1 + i1) mod 2)], pbm=ACT[147456 + 18432*(i0 mod 2)], msb=ACT[184320 + 73728*(i0 mod 2)], zro=None, wgt=WGT[0 + 18432*((i0*n1 + i1) mod 2)], grp=WGT[36864 + 4608*((i0*n1 + i1) mod 2)], m=min(256, M - 256*i0), n=64, k=576, zero=never, row_split=1
21:     MMA.MIN  acc=ACC[0 + 131072*((i0*n1 + i1) mod 2)], sum=ACT[331776 + 9216*(i0 mod 2)], grp=WGT[36864 + 4608*((i0*n1 + i1) mod 2)], m=min(256, M - 256*i0), n=64, k=576, zero=never
22:     SIGNAL   MMA, WGT_FREE
23:     SIGNAL   MMA, ACC_READY
24:     WAIT     STORE, ACC_READY
25:     DRAIN    acc=ACC[0 + 131072*((i0*n1 + i1) mod 2)], row=ACT[350208 + 1024*(i0 mod 2)], chn=None, m=min(256, M - 256*i0), n=64
26:     ST.OUT   OUT[256*i0 : +min(256, M - 256*i0), 64*i1 : +64] <- ACC[0 + 131072*((i0*n1 + i1) mod 2)]
27:     SIGNAL   STORE, ACC_FREE
28:   END ; i1
29:   SIGNAL   MMA, ACT_FREE
30:   SIGNAL   STORE, ROW_FREE
31: END ; i0
