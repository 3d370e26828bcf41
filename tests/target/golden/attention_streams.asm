; small
; M <= 6, T <= 40, causal: 2 key heads of 3 query heads, D = 13
; sparqle, window signed; keys are loaded for every block, row split 1
; B blocks of 4 query rows, chunks of 16 keys
; small: 4 x 4 PEs, 8 lanes of 4 bits
; a scratchpad of 196608 bytes
; ACT
;   queries  2 x 80       at 0
;   probs    2 x 232      at 160
;   scales   2 x 16       at 624
; WGT
;   keys     2 x 208      at 0
;   values   2 x 208      at 416
;   factors  2 x 384      at 832
; ACC
;   scores   2 x 768      at 0
;   outputs  2 x 208      at 1536
; tokens ACT_FREE 2, WGT_FREE 2, ACC_FREE 2, VAL_FREE 2, SCL_FREE 2, SCR_FREE 2, PRB_FREE 2, LIV_FREE 2, OSC_FREE 2
 0: WAIT     LOAD, ACT_FREE
 1: LD.QRY   ACT[0] <- QUERIES[block 0]
 2: SIGNAL   LOAD, ACT_READY
 3: WAIT     MMA, ACT_READY
 4: WAIT     MMA, SCR_FREE
 5: WAIT     LOAD, SCL_FREE
 6: LOOP     i0 < n0 = ceil(T / 16)
 7:   WAIT     LOAD, WGT_FREE
 8:   IF       block 0 sees chunk i0
 9:     LD.KEY   WGT[0 + 208*(i0 mod 2)] <- KEYS[block 0, chunk i0]
10:     LD.SCL   WGT[832 + 128*i0] <- KEY_SCALES[block 0, chunk i0]
11:   END ; IF
12:   SIGNAL   LOAD, WGT_READY
13:   WAIT     MMA, WGT_READY
14:   IF       block 0 sees chunk i0
15:     QK.LSB   scores=ACC[0 + 256*i0], queries=ACT[0], k=WGT[0 + 208*(i0 mod 2)], block 0, chunk i0
16:     QK.MSB   scores=ACC[0 + 256*i0], queries=ACT[0], k=WGT[0 + 208*(i0 mod 2)], block 0, chunk i0
17:   END ; IF
18:   SIGNAL   MMA, WGT_FREE
19: END ; i0
20: SIGNAL   LOAD, SCL_READY
21: SIGNAL   MMA, SCR_READY
22: WAIT     VECTOR, SCL_READY
23: WAIT     VECTOR, SCR_READY
24: WAIT     VECTOR, PRB_FREE
25: WAIT     VECTOR, OSC_FREE
26: WAIT     VECTOR, LIV_FREE
27: VEC.SMX  probs=ACT[160], scales=ACT[624], scores=ACC[0], queries=ACT[0], key_scales=WGT[832], block=0
28: SIGNAL   VECTOR, SCL_FREE
29: SIGNAL   VECTOR, SCR_FREE
30: SIGNAL   VECTOR, PRB_READY
31: SIGNAL   VECTOR, OSC_READY
32: SIGNAL   VECTOR, LIV_READY
33: LOOP     i1 < n1 = ceil(B / 1)
34:   IF       block i1 + 1 exists
35:     WAIT     LOAD, ACT_FREE
36:     LD.QRY   ACT[0 + 80*((i1 + 1) mod 2)] <- QUERIES[block i1 + 1]
37:     SIGNAL   LOAD, ACT_READY
38:     WAIT     MMA, ACT_READY
39:     WAIT     MMA, SCR_FREE
40:     WAIT     LOAD, SCL_FREE
41:     LOOP     i2 < n2 = ceil(T / 16)
42:       WAIT     LOAD, WGT_FREE
43:       IF       block i1 + 1 sees chunk i2
44:         LD.KEY   WGT[0 + 208*(((i1 + 1)*n2 + i2) mod 2)] <- KEYS[block i1 + 1, chunk i2]
45:         LD.SCL   WGT[832 + 384*((i1 + 1) mod 2) + 128*i2] <- KEY_SCALES[block i1 + 1, chunk i2]
46:       END ; IF
47:       SIGNAL   LOAD, WGT_READY
48:       WAIT     MMA, WGT_READY
49:       IF       block i1 + 1 sees chunk i2
50:         QK.LSB   scores=ACC[0 + 768*((i1 + 1) mod 2) + 256*i2], queries=ACT[0 + 80*((i1 + 1) mod 2)], k=WGT[0 + 208*(((i1 + 1)*n2 + i2) mod 2)], block i1 + 1, chunk i2
51:         QK.MSB   scores=ACC[0 + 768*((i1 + 1) mod 2) + 256*i2], queries=ACT[0 + 80*((i1 + 1) mod 2)], k=WGT[0 + 208*(((i1 + 1)*n2 + i2) mod 2)], block i1 + 1, chunk i2
52:       END ; IF
53:       SIGNAL   MMA, WGT_FREE
54:     END ; i2
55:     SIGNAL   LOAD, SCL_READY
56:     SIGNAL   MMA, SCR_READY
57:     WAIT     VECTOR, SCL_READY
58:     WAIT     VECTOR, SCR_READY
59:     WAIT     VECTOR, PRB_FREE
60:     WAIT     VECTOR, OSC_FREE
61:     WAIT     VECTOR, LIV_FREE
62:     VEC.SMX  probs=ACT[160 + 232*((i1 + 1) mod 2)], scales=ACT[624 + 16*((i1 + 1) mod 2)], scores=ACC[0 + 768*((i1 + 1) mod 2)], queries=ACT[0 + 80*((i1 + 1) mod 2)], key_scales=WGT[832 + 384*((i1 + 1) mod 2)], block=i1 + 1
63:     SIGNAL   VECTOR, SCL_FREE
64:     SIGNAL   VECTOR, SCR_FREE
65:     SIGNAL   VECTOR, PRB_READY
66:     SIGNAL   VECTOR, OSC_READY
67:     SIGNAL   VECTOR, LIV_READY
68:   END ; IF
69:   WAIT     MMA, PRB_READY
70:   SIGNAL   MMA, ACT_FREE
71:   WAIT     MMA, ACC_FREE
72:   WAIT     LOAD, LIV_READY
73:   LOOP     i3 < n3 = ceil(T / 16)
74:     WAIT     LOAD, VAL_FREE
75:     IF       block i1 sees chunk i3
76:       LD.VAL   WGT[416 + 208*((i1*n3 + i3) mod 2)] <- VALUES[block i1, chunk i3], live by ACT[160 + 232*(i1 mod 2) + 76*i3]
77:     END ; IF
78:     SIGNAL   LOAD, VAL_READY
79:     WAIT     MMA, VAL_READY
80:     IF       block i1 sees chunk i3
81:       PV.LSB   acc=ACC[1536 + 208*(i1 mod 2)], probs=ACT[160 + 232*(i1 mod 2) + 76*i3], v=WGT[416 + 208*((i1*n3 + i3) mod 2)], block i1, chunk i3
82:       PV.MSB   acc=ACC[1536 + 208*(i1 mod 2)], probs=ACT[160 + 232*(i1 mod 2) + 76*i3], v=WGT[416 + 208*((i1*n3 + i3) mod 2)], block i1, chunk i3
83:     END ; IF
84:     SIGNAL   MMA, VAL_FREE
85:   END ; i3
86:   SIGNAL   LOAD, LIV_FREE
87:   SIGNAL   MMA, PRB_FREE
88:   SIGNAL   MMA, ACC_READY
89:   WAIT     STORE, ACC_READY
90:   WAIT     STORE, OSC_READY
91:   DRN.OUT  acc=ACC[1536 + 208*(i1 mod 2)], scales=ACT[624 + 16*(i1 mod 2)], block=i1
92:   SIGNAL   STORE, OSC_FREE
93:   ST.ATT   OUT[block i1] <- ACC[1536 + 208*(i1 mod 2)]
94:   SIGNAL   STORE, ACC_FREE
95: END ; i1
