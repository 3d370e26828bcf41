; large
; M <= 4096, N = 11008, K = 4096 in chunks of 4096, out float32
; sparqle, int8 in window signed, int8 weights, no offset
; sparqle/edge: 16 x 16 PEs, 16 lanes of 4 bits
; a scratchpad of 2097152 bytes
; ACT
;   lsb      2 x 425984   at 0
;   pbm      2 x 106496   at 851968
;   msb      2 x 425984   at 1064960
;   row      2 x 832      at 1916928
; WGT
;   wgt      2 x 65536    at 0
;   chn      2 x 64       at 131072
; ACC
;   acc      2 x 13312    at 0
; tokens ACT_FREE 2, WGT_FREE 2, ACC_FREE 2, ROW_FREE 2, CHN_FREE 2
 0: LOOP     i0 < n0 = ceil(M / 208)
 1:   WAIT     LOAD, ACT_FREE
 2:   LD.LSB   ACT[0 + 425984*(i0 mod 2)] <- LSB[208*i0 : +min(208, M - 208*i0), 0 : +4096]
 3:   LD.PBM   ACT[851968 + 106496*(i0 mod 2)] <- PBM[208*i0 : +min(208, M - 208*i0), 0 : +4096]
 4:   LD.MSB   ACT[1064960 + 425984*(i0 mod 2)] <- MSB[208*i0 : +min(208, M - 208*i0), 0 : +4096]
 5:   SIGNAL   LOAD, ACT_READY
 6:   WAIT     LOAD, ROW_FREE
 7:   LD.ROW   ACT[1916928 + 832*(i0 mod 2)] <- ROWS[208*i0 : +min(208, M - 208*i0)]
 8:   SIGNAL   LOAD, ROW_READY
 9:   WAIT     MMA, ACT_READY
10:   WAIT     STORE, ROW_READY
11:   LOOP     i1 < n1 = ceil(11008 / 16)
12:     WAIT     LOAD, WGT_FREE
13:     LD.WGT   WGT[0 + 65536*((i0*n1 + i1) mod 2)] <- WGT[16*i1 : +16, 0 : +4096]
14:     SIGNAL   LOAD, WGT_READY
15:     WAIT     MMA, WGT_READY
16:     WAIT     MMA, ACC_FREE
17:     MMA.LSB  acc=ACC[0 + 13312*((i0*n1 + i1) mod 2)], lsb=ACT[0 + 425984*(i0 mod 2)], wgt=WGT[0 + 65536*((i0*n1 + i1) mod 2)], grp=None, m=min(208, M - 208*i0), n=16, k=4096, zero=always, row_split=1
18:     MMA.MSB  acc=ACC[0 + 13312*((i0*n1 + i1) mod 2)], pbm=ACT[851968 + 106496*(i0 mod 2)], msb=ACT[1064960 + 425984*(i0 mod 2)], zro=None, wgt=WGT[0 + 65536*((i0*n1 + i1) mod 2)], grp=None, m=min(208, M - 208*i0), n=16, k=4096, zero=never, row_split=1
19:     SIGNAL   MMA, WGT_FREE
20:     SIGNAL   MMA, ACC_READY
21:     WAIT     LOAD, CHN_FREE
22:     LD.CHN   WGT[131072 + 64*((i0*n1 + i1) mod 2)] <- CHANNELS[16*i1 : +16]
23:     SIGNAL   LOAD, CHN_READY
24:     WAIT     STORE, CHN_READY
25:     WAIT     STORE, ACC_READY
26:     DRAIN    acc=ACC[0 + 13312*((i0*n1 + i1) mod 2)], row=ACT[1916928 + 832*(i0 mod 2)], chn=WGT[131072 + 64*((i0*n1 + i1) mod 2)], m=min(208, M - 208*i0), n=16
27:     SIGNAL   STORE, CHN_FREE
28:     ST.OUT   OUT[208*i0 : +min(208, M - 208*i0), 16*i1 : +16] <- ACC[0 + 13312*((i0*n1 + i1) mod 2)]
29:     SIGNAL   STORE, ACC_FREE
30:   END ; i1
31:   SIGNAL   MMA, ACT_FREE
32:   SIGNAL   STORE, ROW_FREE
33: END ; i0
