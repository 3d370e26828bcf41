; dense
; M <= 256, N = 1000, K = 2048 in chunks of 256, out int32
; dense, int8 in window unsigned, int4 weights, no offset
; sparqle/edge: 16 x 16 PEs, 16 lanes of 4 bits
; ACT 524288 bytes
;   lsb      2 x 32768    at 0
;   msb      2 x 32768    at 65536
; WGT 524288 bytes
;   wgt      2 x 65536    at 0
; ACC 1048576 bytes
;   acc      2 x 524288   at 0
; tokens ACT_FREE 2, WGT_FREE 2, ACC_FREE 2
 0: LOOP     i0 < n0 = ceil(1000 / 512)
 1:   WAIT     MMA, ACC_FREE
 2:   LOOP     i1 < n1 = ceil(2048 / 256)
 3:     WAIT     LOAD, ACT_FREE
 4:     LD.ACT   ACT[0 + 32768*((i0*n1 + i1) mod 2)], ACT[65536 + 32768*((i0*n1 + i1) mod 2)] <- ACT[0 : +min(256, M), 256*i1 : +256]
 5:     SIGNAL   LOAD, ACT_READY
 6:     WAIT     LOAD, WGT_FREE
 7:     LD.WGT   WGT[0 + 65536*((i0*n1 + i1) mod 2)] <- WGT[512*i0 : +min(512, 1000 - 512*i0), 256*i1 : +256]
 8:     SIGNAL   LOAD, WGT_READY
 9:     WAIT     MMA, ACT_READY
10:     WAIT     MMA, WGT_READY
11:     MMA.LSB  acc=ACC[0 + 524288*(i0 mod 2)], lsb=ACT[0 + 32768*((i0*n1 + i1) mod 2)], wgt=WGT[0 + 65536*((i0*n1 + i1) mod 2)], grp=None, m=min(256, M), n=min(512, 1000 - 512*i0), k=256, zero=i1 == 0, row_split=1
12:     MMA.DNS  acc=ACC[0 + 524288*(i0 mod 2)], msb=ACT[65536 + 32768*((i0*n1 + i1) mod 2)], wgt=WGT[0 + 65536*((i0*n1 + i1) mod 2)], grp=None, m=min(256, M), n=min(512, 1000 - 512*i0), k=256, zero=never, row_split=1
13:     SIGNAL   MMA, ACT_FREE
14:     SIGNAL   MMA, WGT_FREE
15:   END ; i1
16:   SIGNAL   MMA, ACC_READY
17:   WAIT     STORE, ACC_READY
18:   DRAIN    acc=ACC[0 + 524288*(i0 mod 2)], row=None, chn=None, m=min(256, M), n=min(512, 1000 - 512*i0)
19:   ST.OUT   OUT[0 : +min(256, M), 512*i0 : +min(512, 1000 - 512*i0)] <- ACC[0 + 524288*(i0 mod 2)]
20:   SIGNAL   STORE, ACC_FREE
21: END ; i0
