; large
; M <= 4096, N = 11008, K = 4096 in chunks of 832, out float32
; sparqle, window signed, int8 weights, no offset
; sparqle/edge: 16 x 16 PEs, 16 lanes of 4 bits
; ACT 524288 bytes
;   row      2 x 1024     at 0
;   lsb      2 x 106496   at 2048
;   pbm      2 x 26624    at 215040
;   msb      2 x 106496   at 268288
; WGT 524288 bytes
;   chn      2 x 1024     at 0
;   wgt      2 x 212992   at 2048
; ACC 1048576 bytes
;   acc      2 x 262144   at 0
; tokens ACT_FREE 2, WGT_FREE 2, ACC_FREE 2, ROW_FREE 2, CHN_FREE 2
 0: LOOP     i0 < n0 = ceil(M / 256)
 1:   WAIT     LOAD, ROW_FREE
 2:   LD.ROW   ACT[0 + 1024*(i0 mod 2)] <- ROWS[256*i0 : +min(256, M - 256*i0)]
 3:   SIGNAL   LOAD, ROW_READY
 4:   WAIT     STORE, ROW_READY
 5:   LOOP     i1 < n1 = ceil(11008 / 256)
 6:     WAIT     MMA, ACC_FREE
 7:     LOOP     i2 < n2 = ceil(4096 / 832)
 8:       WAIT     LOAD, ACT_FREE
 9:       LD.LSB   ACT[2048 + 106496*(((i0*n1 + i1)*n2 + i2) mod 2)] <- LSB[256*i0 : +min(256, M - 256*i0), 832*i2 : +min(832, 4096 - 832*i2)]
10:       LD.PBM   ACT[215040 + 26624*(((i0*n1 + i1)*n2 + i2) mod 2)] <- PBM[256*i0 : +min(256, M - 256*i0), 832*i2 : +min(832, 4096 - 832*i2)]
11:       LD.MSB   ACT[268288 + 106496*(((i0*n1 + i1)*n2 + i2) mod 2)] <- MSB[256*i0 : +min(256, M - 256*i0), 832*i2 : +min(832, 4096 - 832*i2)]
12:       SIGNAL   LOAD, ACT_READY
13:       WAIT     LOAD, WGT_FREE
14:       LD.WGT   WGT[2048 + 212992*(((i0*n1 + i1)*n2 + i2) mod 2)] <- WGT[256*i1 : +256, 832*i2 : +min(832, 4096 - 832*i2)]
15:       SIGNAL   LOAD, WGT_READY
16:       WAIT     MMA, ACT_READY
17:       WAIT     MMA, WGT_READY
18:       MMA.LSB  acc=ACC[0 + 262144*((i0*n1 + i1) mod 2)], lsb=ACT[2048 + 106496*(((i0*n1 + i1)*n2 + i2) mod 2)], wgt=WGT[2048 + 212992*(((i0*n1 + i1)*n2 + i2) mod 2)], grp=None, m=min(256, M - 256*i0), n=256, k=min(832, 4096 - 832*i2), zero=i2 == 0, row_split=1
19:       MMA.MSB  acc=ACC[0 + 262144*((i0*n1 + i1) mod 2)], pbm=ACT[215040 + 26624*(((i0*n1 + i1)*n2 + i2) mod 2)], msb=ACT[268288 + 106496*(((i0*n1 + i1)*n2 + i2) mod 2)], wgt=WGT[2048 + 212992*(((i0*n1 + i1)*n2 + i2) mod 2)], grp=None, m=min(256, M - 256*i0), n=256, k=min(832, 4096 - 832*i2), zero=never, row_split=1
20:       SIGNAL   MMA, ACT_FREE
21:       SIGNAL   MMA, WGT_FREE
22:     END ; i2
23:     SIGNAL   MMA, ACC_READY
24:     WAIT     LOAD, CHN_FREE
25:     LD.CHN   WGT[0 + 1024*((i0*n1 + i1) mod 2)] <- CHANNELS[256*i1 : +256]
26:     SIGNAL   LOAD, CHN_READY
27:     WAIT     STORE, CHN_READY
28:     WAIT     STORE, ACC_READY
29:     DRAIN    acc=ACC[0 + 262144*((i0*n1 + i1) mod 2)], row=ACT[0 + 1024*(i0 mod 2)], chn=WGT[0 + 1024*((i0*n1 + i1) mod 2)], m=min(256, M - 256*i0), n=256
30:     SIGNAL   STORE, CHN_FREE
31:     ST.OUT   OUT[256*i0 : +min(256, M - 256*i0), 256*i1 : +256] <- ACC[0 + 262144*((i0*n1 + i1) mod 2)]
32:     SIGNAL   STORE, ACC_FREE
33:   END ; i1
34:   SIGNAL   STORE, ROW_FREE
35: END ; i0
