; large
; M <= 4096, N = 11008, K = 4096 in chunks of 2048, out float32
; sparqle, int8 in window signed, int8 weights, no offset
; sparqle/edge: 16 x 16 PEs, 16 lanes of 4 bits
; a scratchpad of 2097152 bytes
; ACT
;   lsb      1 x 851968   at 0
;   pbm      1 x 212992   at 851968
;   msb      1 x 851968   at 1064960
;   row      2 x 1664     at 1916928
; WGT
;   chn      2 x 64       at 0
;   wgt      2 x 32768    at 128
; ACC
;   acc      2 x 26624    at 0
; tokens ACT_FREE 1, WGT_FREE 2, ACC_FREE 2, ROW_FREE 2, CHN_FREE 2
 0: LOOP     i0 < n0 = ceil(M / 416)
 1:   WAIT     LOAD, ACT_FREE
 2:   LOOP     i1 < n1 = ceil(4096 / 2048)
 3:     LD.LSB   ACT[0 + 425984*i1] <- LSB[416*i0 : +min(416, M - 416*i0), 2048*i1 : +2048]
 4:     LD.PBM   ACT[851968 + 106496*i1] <- PBM[416*i0 : +min(416, M - 416*i0), 2048*i1 : +2048]
 5:     LD.MSB   ACT[1064960 + 425984*i1] <- MSB[416*i0 : +min(416, M - 416*i0), 2048*i1 : +2048]
 6:   END ; i1
 7:   SIGNAL   LOAD, ACT_READY
 8:   WAIT     LOAD, ROW_FREE
 9:   LD.ROW   ACT[1916928 + 1664*(i0 mod 2)] <- ROWS[416*i0 : +min(416, M - 416*i0)]
10:   SIGNAL   LOAD, ROW_READY
11:   WAIT     MMA, ACT_READY
12:   WAIT     STORE, ROW_READY
13:   LOOP     i2 < n2 = ceil(11008 / 16)
14:     WAIT     MMA, ACC_FREE
15:     LOOP     i3 < n3 = ceil(4096 / 2048)
16:       WAIT     LOAD, WGT_FREE
17:       LD.WGT   WGT[128 + 32768*(((i0*n2 + i2)*n3 + i3) mod 2)] <- WGT[16*i2 : +16, 2048*i3 : +2048]
18:       SIGNAL   LOAD, WGT_READY
19:       WAIT     MMA, WGT_READY
20:       MMA.LSB  acc=ACC[0 + 26624*((i0*n2 + i2) mod 2)], lsb=ACT[0 + 425984*i3], wgt=WGT[128 + 32768*(((i0*n2 + i2)*n3 + i3) mod 2)], grp=None, m=min(416, M - 416*i0), n=16, k=2048, zero=i3 == 0, row_split=1
21:       MMA.MSB  acc=ACC[0 + 26624*((i0*n2 + i2) mod 2)], pbm=ACT[851968 + 106496*i3], msb=ACT[1064960 + 425984*i3], zro=None, wgt=WGT[128 + 32768*(((i0*n2 + i2)*n3 + i3) mod 2)], grp=None, m=min(416, M - 416*i0), n=16, k=2048, zero=never, row_split=1
22:       SIGNAL   MMA, WGT_FREE
23:     END ; i3
24:     SIGNAL   MMA, ACC_READY
25:     WAIT     LOAD, CHN_FREE
26:     LD.CHN   WGT[0 + 64*((i0*n2 + i2) mod 2)] <- CHANNELS[16*i2 : +16]
27:     SIGNAL   LOAD, CHN_READY
28:     WAIT     STORE, CHN_READY
29:     WAIT     STORE, ACC_READY
30:     DRAIN    acc=ACC[0 + 26624*((i0*n2 + i2) mod 2)], row=ACT[1916928 + 1664*(i0 mod 2)], chn=WGT[0 + 64*((i0*n2 + i2) mod 2)], m=min(416, M - 416*i0), n=16
31:     SIGNAL   STORE, CHN_FREE
32:     ST.OUT   OUT[416*i0 : +min(416, M - 416*i0), 16*i2 : +16] <- ACC[0 + 26624*((i0*n2 + i2) mod 2)]
33:     SIGNAL   STORE, ACC_FREE
34:   END ; i2
35:   SIGNAL   MMA, ACT_FREE
36:   SIGNAL   STORE, ROW_FREE
37: END ; i0
