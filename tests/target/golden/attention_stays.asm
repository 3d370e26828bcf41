; small
; M <= 6, T <= 40, causal: 2 key heads of 3 query heads, D = 13
; sparqle, window signed; keys stay for a head, row split 1
; B blocks of 4 query rows, chunks of 16 keys
; small: 4 x 4 PEs, 8 lanes of 4 bits
; a scratchpad of 196608 bytes
; ACT
;   queries  2 x 80       at 0
;   probs    2 x 232      at 160
;   scales   2 x 16       at 624
; WGT
;   keys     1 x 624      at 0
;   values   1 x 624      at 624
;   factors  1 x 384      at 1248
; ACC
;   scores   2 x 768      at 0
;   outputs  2 x 208      at 1536
; tokens ACT_FREE 2, WGT_FREE 1, ACC_FREE 2, VAL_FREE 1, SCL_FREE 1, SCR_FREE 2, PRB_FREE 2, OSC_FREE 2
  0: WAIT     LOAD, ACT_FREE
  1: LD.QRY   ACT[0] <- QUERIES[block 0]
  2: SIGNAL   LOAD, ACT_READY
  3: IF       block 0 is the first of its head
  4:   WAIT     LOAD, WGT_FREE
  5:   WAIT     LOAD, SCL_FREE
  6:   LOOP     i0 < n0 = ceil(T / 16)
  7:     LD.KEY   WGT[0 + 208*i0] <- KEYS[block 0, chunk i0]
  8:     LD.SCL   WGT[1248 + 128*i0] <- KEY_SCALES[block 0, chunk i0]
  9:   END ; i0
 10:   SIGNAL   LOAD, WGT_READY
 11:   SIGNAL   LOAD, SCL_READY
 12: END ; IF
 13: WAIT     MMA, ACT_READY
 14: WAIT     MMA, SCR_FREE
 15: IF       block 0 is the first of its head
 16:   WAIT     MMA, WGT_READY
 17: END ; IF
 18: LOOP     i1 < n1 = ceil(T / 16)
 19:   IF       block 0 sees chunk i1
 20:     QK.LSB   scores=ACC[0 + 256*i1], queries=ACT[0], k=WGT[0 + 208*i1], block 0, chunk i1
 21:     QK.MSB   scores=ACC[0 + 256*i1], queries=ACT[0], k=WGT[0 + 208*i1], block 0, chunk i1
 22:   END ; IF
 23: END ; i1
 24: IF       block 0 is the last of its head
 25:   SIGNAL   MMA, WGT_FREE
 26: END ; IF
 27: SIGNAL   MMA, SCR_READY
 28: IF       block 0 is the first of its head
 29:   WAIT     VECTOR, SCL_READY
 30: END ; IF
 31: WAIT     VECTOR, SCR_READY
 32: WAIT     VECTOR, PRB_FREE
 33: WAIT     VECTOR, OSC_FREE
 34: VEC.SMX  probs=ACT[160], scales=ACT[624], scores=ACC[0], queries=ACT[0], key_scales=WGT[1248], block=0
 35: IF       block 0 is the last of its head
 36:   SIGNAL   VECTOR, SCL_FREE
 37: END ; IF
 38: SIGNAL   VECTOR, SCR_FREE
 39: SIGNAL   VECTOR, PRB_READY
 40: SIGNAL   VECTOR, OSC_READY
 41: LOOP     i2 < n2 = ceil(B / 1)
 42:   IF       block i2 + 1 exists
 43:     WAIT     LOAD, ACT_FREE
 44:     LD.QRY   ACT[0 + 80*((i2 + 1) mod 2)] <- QUERIES[block i2 + 1]
 45:     SIGNAL   LOAD, ACT_READY
 46:     IF       block i2 + 1 is the first of its head
 47:       WAIT     LOAD, WGT_FREE
 48:       WAIT     LOAD, SCL_FREE
 49:       LOOP     i3 < n3 = ceil(T / 16)
 50:         LD.KEY   WGT[0 + 208*i3] <- KEYS[block i2 + 1, chunk i3]
 51:         LD.SCL   WGT[1248 + 128*i3] <- KEY_SCALES[block i2 + 1, chunk i3]
 52:       END ; i3
 53:       SIGNAL   LOAD, WGT_READY
 54:       SIGNAL   LOAD, SCL_READY
 55:     END ; IF
 56:     WAIT     MMA, ACT_READY
 57:     WAIT     MMA, SCR_FREE
 58:     IF       block i2 + 1 is the first of its head
 59:       WAIT     MMA, WGT_READY
 60:     END ; IF
 61:     LOOP     i4 < n4 = ceil(T / 16)
 62:       IF       block i2 + 1 sees chunk i4
 63:         QK.LSB   scores=ACC[0 + 768*((i2 + 1) mod 2) + 256*i4], queries=ACT[0 + 80*((i2 + 1) mod 2)], k=WGT[0 + 208*i4], block i2 + 1, chunk i4
 64:         QK.MSB   scores=ACC[0 + 768*((i2 + 1) mod 2) + 256*i4], queries=ACT[0 + 80*((i2 + 1) mod 2)], k=WGT[0 + 208*i4], block i2 + 1, chunk i4
 65:       END ; IF
 66:     END ; i4
 67:     IF       block i2 + 1 is the last of its head
 68:       SIGNAL   MMA, WGT_FREE
 69:     END ; IF
 70:     SIGNAL   MMA, SCR_READY
 71:     IF       block i2 + 1 is the first of its head
 72:       WAIT     VECTOR, SCL_READY
 73:     END ; IF
 74:     WAIT     VECTOR, SCR_READY
 75:     WAIT     VECTOR, PRB_FREE
 76:     WAIT     VECTOR, OSC_FREE
 77:     VEC.SMX  probs=ACT[160 + 232*((i2 + 1) mod 2)], scales=ACT[624 + 16*((i2 + 1) mod 2)], scores=ACC[0 + 768*((i2 + 1) mod 2)], queries=ACT[0 + 80*((i2 + 1) mod 2)], key_scales=WGT[1248], block=i2 + 1
 78:     IF       block i2 + 1 is the last of its head
 79:       SIGNAL   VECTOR, SCL_FREE
 80:     END ; IF
 81:     SIGNAL   VECTOR, SCR_FREE
 82:     SIGNAL   VECTOR, PRB_READY
 83:     SIGNAL   VECTOR, OSC_READY
 84:   END ; IF
 85:   IF       block i2 is the first of its head
 86:     WAIT     LOAD, VAL_FREE
 87:     LOOP     i5 < n5 = ceil(T / 16)
 88:       LD.VAL   WGT[624 + 208*i5] <- VALUES[block i2, chunk i5]
 89:     END ; i5
 90:     SIGNAL   LOAD, VAL_READY
 91:     WAIT     MMA, VAL_READY
 92:   END ; IF
 93:   WAIT     MMA, PRB_READY
 94:   SIGNAL   MMA, ACT_FREE
 95:   WAIT     MMA, ACC_FREE
 96:   LOOP     i6 < n6 = ceil(T / 16)
 97:     IF       block i2 sees chunk i6
 98:       PV.LSB   acc=ACC[1536 + 208*(i2 mod 2)], probs=ACT[160 + 232*(i2 mod 2) + 76*i6], v=WGT[624 + 208*i6], block i2, chunk i6
 99:       PV.MSB   acc=ACC[1536 + 208*(i2 mod 2)], probs=ACT[160 + 232*(i2 mod 2) + 76*i6], v=WGT[624 + 208*i6], block i2, chunk i6
100:     END ; IF
101:   END ; i6
102:   IF       block i2 is the last of its head
103:     SIGNAL   MMA, VAL_FREE
104:   END ; IF
105:   SIGNAL   MMA, PRB_FREE
106:   SIGNAL   MMA, ACC_READY
107:   WAIT     STORE, ACC_READY
108:   WAIT     STORE, OSC_READY
109:   DRN.OUT  acc=ACC[1536 + 208*(i2 mod 2)], scales=ACT[624 + 16*(i2 mod 2)], block=i2
110:   SIGNAL   STORE, OSC_FREE
111:   ST.ATT   OUT[block i2] <- ACC[1536 + 208*(i2 mod 2)]
112:   SIGNAL   STORE, ACC_FREE
113: END ; i2
