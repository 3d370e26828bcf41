; sorted
; M <= 512, N = 960, K = 576 in chunks of 576, out float32
; sparqle, int8 in window signed, int4 weights, a scale per 32 along K, no offset
; sparqle/edge: 16 x 16 PEs, 16 lanes of 4 bits
; ACT 524288 bytes
;   lsb      2 x 73728    at 0
;   pbm      2 x 18432    at 147456
;   msb      2 x 73728    at 184320
;   row      2 x 1536     at 331776
; WGT 524288 bytes
;   wgt      2 x 23040    at 0
;   grp      2 x 2880     at 46080
; ACC 1048576 bytes
;   acc      2 x 163840   at 0
; tokens ACT_FREE 2, WGT_FREE 2, ACC_FREE 2, ROW_FREE 2
 0: LOOP     i0 < n0 = ceil(M / 256)
 1:   WAIT     LOAD, ACT_FREE
 2:   LD.LSB   ACT[0 + 73728*(i0 mod 2)] <- LSB[256*i0 : +min(256, M - 256*i0), 0 : +576]
 3:   LD.PBM   ACT[147456 + 18432*(i0 mod 2)] <- PBM[256*i0 : +min(256, M - 256*i0), 0 : +576]
 4:   LD.MSB   ACT[184320 + 73728*(i0 mod 2)] <- MSB[256*i0 : +min(256, M - 256*i0), 0 : +576]
 5:   SIGNAL   LOAD, ACT_READY
 6:   WAIT     LOAD, ROW_FREE
 7:   LD.ROW   ACT[331776 + 1536*(i0 mod 2)] <- ROWS[256*i0 : +min(256, M - 256*i0)]
 8:   SIGNAL   LOAD, ROW_READY
 9:   WAIT     MMA, ACT_READY
10:   WAIT     STORE, ROW_READY
11:   LOOP     i1 < n1 = ceil(960 / 80)
12:     WAIT     LOAD, WGT_FREE
13:     LD.WGT   WGT[0 + 23040*((i0*n1 + i1) mod 2)] <- WGT[80*i1 : +80, 0 : +576]
14:     LD.GRP   WGT[46080 + 2880*((i0*n1 + i1) mod 2)] <- W_SCALE[80*i1 : +80, 0 : +576]
15:     SIGNAL   LOAD, WGT_READY
16:     WAIT     MMA, WGT_READY
17:     WAIT     MMA, ACC_FREE
18:     MMA.LSB  acc=ACC[0 + 163840*((i0*n1 + i1) mod 2)], lsb=ACT[0 + 73728*(i0 mod 2)], wgt=WGT[0 + 23040*((i0*n1 + i1) mod 2)], grp=WGT[46080 + 2880*((i0*n1 + i1) mod 2)], m=min(256, M - 256*i0), n=80, k=576, zero=always, row_split=1
19:     MMA.MSB  acc=ACC[0 + 163840*((i0*n1 + i1) mod 2)], pbm=ACT[147456 + 18432*(i0 mod 2)], msb=ACT[184320 + 73728*(i0 mod 2)], zro=None, wgt=WGT[0 + 23040*((i0*n1 + i1) mod 2)], grp=WGT[46080 + 2880*((i0*n1 + i1) mod 2)], m=min(256, M - 256*i0), n=80, k=576, zero=never, row_split=1
20:     SIGNAL   MMA, WGT_FREE
21:     SIGNAL   MMA, ACC_READY
22:     WAIT     STORE, ACC_READY
23:     DRAIN    acc=ACC[0 + 163840*((i0*n1 + i1) mod 2)], row=ACT[331776 + 1536*(i0 mod 2)], chn=None, m=min(256, M - 256*i0), n=80
24:     ST.OUT   OUT[256*i0 : +min(256, M - 256*i0), 80*i1 : +80] <- ACC[0 + 163840*((i0*n1 + i1) mod 2)], rows by ACT[331776 + 1536*(i0 mod 2)]
25:     SIGNAL   STORE, ACC_FREE
26:   END ; i1
27:   SIGNAL   MMA, ACT_FREE
28:   SIGNAL   STORE, ROW_FREE
29: END ; i0
