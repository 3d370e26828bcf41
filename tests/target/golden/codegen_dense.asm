; dense
; M <= 256, N = 1000, K = 2048 in chunks of 2048, out int32
; dense, int8 in window unsigned, int4 weights, no offset
; sparqle/edge: 16 x 16 PEs, 16 lanes of 4 bits
; a scratchpad of 2097152 bytes
; ACT
;   lsb      2 x 131072   at 0
;   msb      2 x 131072   at 262144
; WGT
;   wgt      2 x 49152    at 0
; ACC
;   acc      2 x 24576    at 0
; tokens ACT_FREE 2, WGT_FREE 2, ACC_FREE 2
 0: LOOP     i0 < n0 = ceil(M / 128)
 1:   WAIT     LOAD, ACT_FREE
 2:   LD.ACT   ACT[0 + 131072*(i0 mod 2)], ACT[262144 + 131072*(i0 mod 2)] <- ACT[128*i0 : +min(128, M - 128*i0), 0 : +2048]
 3:   SIGNAL   LOAD, ACT_READY
 4:   WAIT     MMA, ACT_READY
 5:   LOOP     i1 < n1 = ceil(1000 / 48)
 6:     WAIT     LOAD, WGT_FREE
 7:     LD.WGT   WGT[0 + 49152*((i0*n1 + i1) mod 2)] <- WGT[48*i1 : +min(48, 1000 - 48*i1), 0 : +2048]
 8:     SIGNAL   LOAD, WGT_READY
 9:     WAIT     MMA, WGT_READY
10:     WAIT     MMA, ACC_FREE
11:     MMA.LSB  acc=ACC[0 + 24576*((i0*n1 + i1) mod 2)], lsb=ACT[0 + 131072*(i0 mod 2)], wgt=WGT[0 + 49152*((i0*n1 + i1) mod 2)], grp=None, m=min(128, M - 128*i0), n=min(48, 1000 - 48*i1), k=2048, zero=always, row_split=1
12:     MMA.DNS  acc=ACC[0 + 24576*((i0*n1 + i1) mod 2)], msb=ACT[262144 + 131072*(i0 mod 2)], wgt=WGT[0 + 49152*((i0*n1 + i1) mod 2)], grp=None, m=min(128, M - 128*i0), n=min(48, 1000 - 48*i1), k=2048, zero=never, row_split=1
13:     SIGNAL   MMA, WGT_FREE
14:     SIGNAL   MMA, ACC_READY
15:     WAIT     STORE, ACC_READY
16:     DRAIN    acc=ACC[0 + 24576*((i0*n1 + i1) mod 2)], row=None, chn=None, m=min(128, M - 128*i0), n=min(48, 1000 - 48*i1)
17:     ST.OUT   OUT[128*i0 : +min(128, M - 128*i0), 48*i1 : +min(48, 1000 - 48*i1)] <- ACC[0 + 24576*((i0*n1 + i1) mod 2)]
18:     SIGNAL   STORE, ACC_FREE
19:   END ; i1
20:   SIGNAL   MMA, ACT_FREE
21: END ; i0
