"""From a dense op to a program: TIR, schedules, tiles, code generation."""
