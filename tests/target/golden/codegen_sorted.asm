; sorted
; M <= 512, N = 960, K = 576 in chunks of 576, out float32
; sparqle, int8 in window signed, int4 weights, a scale per 32 along K, no offset
; sparqle/edge: 16 x 16 PEs, 16 lanes of 4 bits
; a scratchpad of 2097152 bytes
; ACT
;   lsb      2 x 4608     at 0
;   pbm      2 x 1152     at 9216
;   msb      2 x 4608     at 11520
;   row      2 x 96       at 20736
; WGT
;   wgt      1 x 276480   at 0
;   grp      1 x 34560    at 276480
; ACC
;   acc      2 x 122880   at 0
; tokens ACT_FREE 2, WGT_FREE 1, ACC_FREE 2, ROW_FREE 2
 0: WAIT     LOAD, WGT_FREE
 1: LD.WGT   WGT[0] <- WGT[0 : +960, 0 : +576]
 2: LD.GRP   WGT[276480] <- W_SCALE[0 : +960, 0 : +576]
 3: SIGNAL   LOAD, WGT_READY
 4: WAIT     MMA, WGT_READY
 5: LOOP     i0 < n0 = ceil(M / 16)
 6:   WAIT     LOAD, ACT_FREE
 7:   LD.LSB   ACT[0 + 4608*(i0 mod 2)] <- LSB[16*i0 : +min(16, M - 16*i0), 0 : +576]
 8:   LD.PBM   ACT[9216 + 1152*(i0 mod 2)] <- PBM[16*i0 : +min(16, M - 16*i0), 0 : +576]
 9:   LD.MSB   ACT[11520 + 4608*(i0 mod 2)] <- MSB[16*i0 : +min(16, M - 16*i0), 0 : +576]
10:   SIGNAL   LOAD, ACT_READY
11:   WAIT     MMA, ACT_READY
12:   WAIT     MMA, ACC_FREE
13:   MMA.LSB  acc=ACC[0 + 122880*(i0 mod 2)], lsb=ACT[0 + 4608*(i0 mod 2)], wgt=WGT[0], grp=WGT[276480], m=min(16, M - 16*i0), n=960, k=576, zero=always, row_split=1
14:   MMA.MSB  acc=ACC[0 + 122880*(i0 mod 2)], pbm=ACT[9216 + 1152*(i0 mod 2)], msb=ACT[11520 + 4608*(i0 mod 2)], zro=None, wgt=WGT[0], grp=WGT[276480], m=min(16, M - 16*i0), n=960, k=576, zero=never, row_split=1
15:   SIGNAL   MMA, ACT_FREE
16:   SIGNAL   MMA, ACC_READY
17:   WAIT     LOAD, ROW_FREE
18:   LD.ROW   ACT[20736 + 96*(i0 mod 2)] <- ROWS[16*i0 : +min(16, M - 16*i0)]
19:   SIGNAL   LOAD, ROW_READY
20:   WAIT     STORE, ROW_READY
21:   WAIT     STORE, ACC_READY
22:   DRAIN    acc=ACC[0 + 122880*(i0 mod 2)], row=ACT[20736 + 96*(i0 mod 2)], chn=None, m=min(16, M - 16*i0), n=960
23:   ST.OUT   OUT[16*i0 : +min(16, M - 16*i0), 0 : +960] <- ACC[0 + 122880*(i0 mod 2)], rows by ACT[20736 + 96*(i0 mod 2)]
24:   SIGNAL   STORE, ROW_FREE
25:   SIGNAL   STORE, ACC_FREE
26: END ; i0
27: SIGNAL   MMA, WGT_FREE
