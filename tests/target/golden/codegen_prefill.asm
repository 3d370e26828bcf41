; prefill
; M <= 512, N = 1536, K = 576 in chunks of 288, out float32
; sparqle, int8 in window signed, uint4 weights, a scale and a minimum per 32 along K, no offset
; sparqle/edge: 16 x 16 PEs, 16 lanes of 4 bits
; a scratchpad of 2097152 bytes
; ACT
;   lsb      1 x 147456   at 0
;   pbm      1 x 36864    at 147456
;   msb      1 x 147456   at 184320
;   sum      1 x 18432    at 331776
;   row      1 x 2048     at 350208
; WGT
;   wgt      2 x 2304     at 0
;   grp      2 x 576      at 4608
; ACC
;   acc      2 x 65536    at 0
; tokens ACT_FREE 1, WGT_FREE 2, ACC_FREE 2, ROW_FREE 1
 0: WAIT     LOAD, ACT_FREE
 1: LOOP     i0 < n0 = ceil(576 / 288)
 2:   LD.LSB   ACT[0 + 73728*i0] <- LSB[0 : +min(512, M), 288*i0 : +288]
 3:   LD.PBM   ACT[147456 + 18432*i0] <- PBM[0 : +min(512, M), 288*i0 : +288]
 4:   LD.MSB   ACT[184320 + 73728*i0] <- MSB[0 : +min(512, M), 288*i0 : +288]
 5:   LD.SUM   ACT[331776 + 9216*i0] <- GROUP_SUMS[0 : +min(512, M), 288*i0 : +288]
 6: END ; i0
 7: SIGNAL   LOAD, ACT_READY
 8: WAIT     LOAD, ROW_FREE
 9: LD.ROW   ACT[350208] <- ROWS[0 : +min(512, M)]
10: SIGNAL   LOAD, ROW_READY
11: WAIT     MMA, ACT_READY
12: WAIT     STORE, ROW_READY
13: LOOP     i1 < n1 = ceil(1536 / 16)
14:   WAIT     MMA, ACC_FREE
15:   LOOP     i2 < n2 = ceil(576 / 288)
16:     WAIT     LOAD, WGT_FREE
17:     LD.WGT   WGT[0 + 2304*((i1*n2 + i2) mod 2)] <- WGT[16*i1 : +16, 288*i2 : +288]
18:     LD.GRP   WGT[4608 + 576*((i1*n2 + i2) mod 2)] <- W_SCALE[16*i1 : +16, 288*i2 : +288]
19:     SIGNAL   LOAD, WGT_READY
20:     WAIT     MMA, WGT_READY
21:     MMA.LSB  acc=ACC[0 + 65536*(i1 mod 2)], lsb=ACT[0 + 73728*i2], wgt=WGT[0 + 2304*((i1*n2 + i2) mod 2)], grp=WGT[4608 + 576*((i1*n2 + i2) mod 2)], m=min(512, M), n=16, k=288, zero=i2 == 0, row_split=1
22:     MMA.MSB  acc=ACC[0 + 65536*(i1 mod 2)], pbm=ACT[147456 + 18432*i2], msb=ACT[184320 + 73728*i2], zro=None, wgt=WGT[0 + 2304*((i1*n2 + i2) mod 2)], grp=WGT[4608 + 576*((i1*n2 + i2) mod 2)], m=min(512, M), n=16, k=288, zero=never, row_split=1
23:     MMA.MIN  acc=ACC[0 + 65536*(i1 mod 2)], sum=ACT[331776 + 9216*i2], grp=WGT[4608 + 576*((i1*n2 + i2) mod 2)], m=min(512, M), n=16, k=288, zero=never
24:     SIGNAL   MMA, WGT_FREE
25:   END ; i2
26:   SIGNAL   MMA, ACC_READY
27:   WAIT     STORE, ACC_READY
28:   DRAIN    acc=ACC[0 + 65536*(i1 mod 2)], row=ACT[350208], chn=None, m=min(512, M), n=16
29:   ST.OUT   OUT[0 : +min(512, M), 16*i1 : +16] <- ACC[0 + 65536*(i1 mod 2)]
30:   SIGNAL   STORE, ACC_FREE
31: END ; i1
32: SIGNAL   MMA, ACT_FREE
33: SIGNAL   STORE, ROW_FREE
