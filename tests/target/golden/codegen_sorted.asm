; sorted
; M <= 512, N = 960, K = 576 in chunks of 576, out float32
; sparqle, int8 in window signed, int4 weights, a scale per 32 along K, no offset
; sparqle/edge: 16 x 16 PEs, 16 lanes of 4 bits
; a scratchpad of 2097152 bytes
; ACT
;   lsb      1 x 147456   at 0
;   pbm      1 x 36864    at 147456
;   msb      1 x 147456   at 184320
;   row      1 x 3072     at 331776
; WGT
;   wgt      2 x 4608     at 0
;   grp      2 x 576      at 9216
; ACC
;   acc      2 x 65536    at 0
; tokens ACT_FREE 1, WGT_FREE 2, ACC_FREE 2, ROW_FREE 1
 0: WAIT     LOAD, ACT_FREE
 1: LD.LSB   ACT[0] <- LSB[0 : +min(512, M), 0 : +576]
 2: LD.PBM   ACT[147456] <- PBM[0 : +min(512, M), 0 : +576]
 3: LD.MSB   ACT[184320] <- MSB[0 : +min(512, M), 0 : +576]
 4: SIGNAL   LOAD, ACT_READY
 5: WAIT     LOAD, ROW_FREE
 6: LD.ROW   ACT[331776] <- ROWS[0 : +min(512, M)]
 7: SIGNAL   LOAD, ROW_READY
 8: WAIT     MMA, ACT_READY
 9: WAIT     STORE, ROW_READY
10: LOOP     i0 < n0 = ceil(960 / 16)
11:   WAIT     LOAD, WGT_FREE
12:   LD.WGT   WGT[0 + 4608*(i0 mod 2)] <- WGT[16*i0 : +16, 0 : +576]
13:   LD.GRP   WGT[9216 + 576*(i0 mod 2)] <- W_SCALE[16*i0 : +16, 0 : +576]
14:   SIGNAL   LOAD, WGT_READY
15:   WAIT     MMA, WGT_READY
16:   WAIT     MMA, ACC_FREE
17:   MMA.LSB  acc=ACC[0 + 65536*(i0 mod 2)], lsb=ACT[0], wgt=WGT[0 + 4608*(i0 mod 2)], grp=WGT[9216 + 576*(i0 mod 2)], m=min(512, M), n=16, k=576, zero=always, row_split=1
18:   MMA.MSB  acc=ACC[0 + 65536*(i0 mod 2)], pbm=ACT[147456], msb=ACT[184320], zro=None, wgt=WGT[0 + 4608*(i0 mod 2)], grp=WGT[9216 + 576*(i0 mod 2)], m=min(512, M), n=16, k=576, zero=never, row_split=1
19:   SIGNAL   MMA, WGT_FREE
20:   SIGNAL   MMA, ACC_READY
21:   WAIT     STORE, ACC_READY
22:   DRAIN    acc=ACC[0 + 65536*(i0 mod 2)], row=ACT[331776], chn=None, m=min(512, M), n=16
23:   ST.OUT   OUT[0 : +min(512, M), 16*i0 : +16] <- ACC[0 + 65536*(i0 mod 2)], rows by ACT[331776]
24:   SIGNAL   STORE, ACC_FREE
25: END ; i0
26: SIGNAL   MMA, ACT_FREE
27: SIGNAL   STORE, ROW_FREE
