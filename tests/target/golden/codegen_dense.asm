; dense
; M <= 256, N = 1000, K = 2048 in chunks of 304, out int32
; dense, int8 in window unsigned, int4 weights, no offset
; sparqle/edge: 16 x 16 PEs, 16 lanes of 4 bits
; a scratchpad of 2097152 bytes
; ACT
;   lsb      2 x 38912    at 0
;   msb      2 x 38912    at 77824
; WGT
;   wgt      2 x 51072    at 0
; ACC
;   acc      2 x 344064   at 0
; tokens ACT_FREE 2, WGT_FREE 2, ACC_FREE 2
 0: LOOP     i0 < n0 = ceil(1000 / 336)
 1:   WAIT     MMA, ACC_FREE
 2:   LOOP     i1 < n1 = ceil(2048 / 304)
 3:     WAIT     LOAD, ACT_FREE
 4:     LD.ACT   ACT[0 + 38912*((i0*n1 + i1) mod 2)], ACT[77824 + 38912*((i0*n1 + i1) mod 2)] <- ACT[0 : +min(256, M), 304*i1 : +min(304, 2048 - 304*i1)]
 5:     SIGNAL   LOAD, ACT_READY
 6:     WAIT     LOAD, WGT_FREE
 7:     LD.WGT   WGT[0 + 51072*((i0*n1 + i1) mod 2)] <- WGT[336*i0 : +min(336, 1000 - 336*i0), 304*i1 : +min(304, 2048 - 304*i1)]
 8:     SIGNAL   LOAD, WGT_READY
 9:     WAIT     MMA, ACT_READY
10:     WAIT     MMA, WGT_READY
11:     MMA.LSB  acc=ACC[0 + 344064*(i0 mod 2)], lsb=ACT[0 + 38912*((i0*n1 + i1) mod 2)], wgt=WGT[0 + 51072*((i0*n1 + i1) mod 2)], grp=None, m=min(256, M), n=min(336, 1000 - 336*i0), k=min(304, 2048 - 304*i1), zero=i1 == 0, row_split=1
12:     MMA.DNS  acc=ACC[0 + 344064*(i0 mod 2)], msb=ACT[77824 + 38912*((i0*n1 + i1) mod 2)], wgt=WGT[0 + 51072*((i0*n1 + i1) mod 2)], grp=None, m=min(256, M), n=min(336, 1000 - 336*i0), k=min(304, 2048 - 304*i1), zero=never, row_split=1
13:     SIGNAL   MMA, ACT_FREE
14:     SIGNAL   MMA, WGT_FREE
15:   END ; i1
16:   SIGNAL   MMA, ACC_READY
17:   WAIT     STORE, ACC_READY
18:   DRAIN    acc=ACC[0 + 344064*(i0 mod 2)], row=None, chn=None, m=min(256, M), n=min(336, 1000 - 336*i0)
19:   ST.OUT   OUT[0 : +min(256, M), 336*i0 : +min(336, 1000 - 336*i0)] <- ACC[0 + 344064*(i0 mod 2)]
20:   SIGNAL   STORE, ACC_FREE
21: END ; i0
