"""Time offsets between sensors, found in what they saw (being written: helper for issue 3, item 6).

Gyro against image rotation (integrated least squares and Kabsch), and claps in audio, force and image (matched
pulse fit, onset). Each answer carries a sigma, or refuses when the scene holds no information. The result becomes a
Verdict that confirms or contradicts the clock claims.
"""
