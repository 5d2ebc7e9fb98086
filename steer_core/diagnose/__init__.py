"""`steer diagnose`: what a dump of anyone's run tells of its entropy, in words, numbers and a page.

1. `which_entropy`: what the column `entropy` is: Shannon's, the sampled negative log-prob, or either of them divided.
2. `measures`: entropy over the run, quadrants, clip, positions, the tokens that move most, truncation, groups, the gap.
3. `methods`: what each method would make of every token's push.
4. `change`: estimates against measured changes, where states come twice.
5. `rules`: thresholds with their reasons; `findings`: what is found by them; `advice`: what to try, with the evidence.
6. `seen`, `diagnosis`: all of it for one dump; `words`, `figures`, `page`: how it is told.
"""
