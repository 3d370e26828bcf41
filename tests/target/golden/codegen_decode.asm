; decode
; M <= 1, N = 576, K = 1536 in chunks of 1536, out float32
; sparqle, int8 in window signed, uint4 weights, a scale and a minimum per 32 along K, no offset
; sparqle/edge: 16 x 16 PEs, 16 lanes of 4 bits
; a scratchpad of 2097152 bytes
; ACT
;   lsb      1 x 768      at 0
;   pbm      1 x 192      at 768
;   msb      1 x 768      at 960
;   sum      1 x 96       at 1728
;   row      1 x 8        at 1824
; WGT
;   wgt      2 x 147456   at 0
;   grp      2 x 36864    at 294912
; ACC
;   acc      2 x 1536     at 0
; tokens ACT_FREE 1, WGT_FREE 2, ACC_FREE 2, ROW_FREE 1
 0: WAIT     LOAD, ACT_FREE
 1: LD.LSB   ACT[0] <- LSB[0 : +min(1, M), 0 : +1536]
 2: LD.PBM   ACT[768] <- PBM[0 : +min(1, M), 0 : +1536]
 3: LD.MSB   ACT[960] <- MSB[0 : +min(1, M), 0 : +1536]
 4: LD.SUM   ACT[1728] <- GROUP_SUMS[0 : +min(1, M), 0 : +1536]
 5: SIGNAL   LOAD, ACT_READY
 6: WAIT     LOAD, ROW_FREE
 7: LD.ROW   ACT[1824] <- ROWS[0 : +min(1, M)]
 8: SIGNAL   LOAD, ROW_READY
 9: WAIT     MMA, ACT_READY
10: WAIT     STORE, ROW_READY
11: LOOP     i0 < n0 = ceil(576 / 192)
12:   WAIT     LOAD, WGT_FREE
13:   LD.WGT   WGT[0 + 147456*(i0 mod 2)] <- WGT[192*i0 : +192, 0 : +1536]
14:   LD.GRP   WGT[294912 + 36864*(i0 mod 2)] <- W_SCALE[192*i0 : +192, 0 : +1536]
15:   SIGNAL   LOAD, WGT_READY
16:   WAIT     MMA, WGT_READY
17:   WAIT     MMA, ACC_FREE
18:   MMA.LSB  acc=ACC[0 + 1536*(i0 mod 2)], lsb=ACT[0], wgt=WGT[0 + 147456*(i0 mod 2)], grp=WGT[294912 + 36864*(i0 mod 2)], m=min(1, M), n=192, k=1536, zero=always, row_split=16
19:   MMA.MSB  acc=ACC[0 + 1536*(i0 mod 2)], pbm=ACT[768], msb=ACT[960], zro=None, wgt=WGT[0 + 147456*(i0 mod 2)], grp=WGT[294912 + 36864*(i0 mod 2)], m=min(1, M), n=192, k=1536, zero=never, row_split=16
20:   MMA.MIN  acc=ACC[0 + 1536*(i0 mod 2)], sum=ACT[1728], grp=WGT[294912 + 36864*(i0 mod 2)], m=min(1, M), n=192, k=1536, zero=never
21:   SIGNAL   MMA, WGT_FREE
22:   SIGNAL   MMA, ACC_READY
23:   WAIT     STORE, ACC_READY
24:   DRAIN    acc=ACC[0 + 1536*(i0 mod 2)], row=ACT[1824], chn=None, m=min(1, M), n=192
25:   ST.OUT   OUT[0 : +min(1, M), 192*i0 : +192] <- ACC[0 + 1536*(i0 mod 2)]
26:   SIGNAL   STORE, ACC_FREE
27: END ; i0
28: SIGNAL   MMA, ACT_FREE
29: SIGNAL   STORE, ROW_FREE
