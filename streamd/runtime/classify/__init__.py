"""Second-stage classifiers: models that say more of detected objects than the detector.

A published frame shows an object clearly: its part of the picture is copied (`imaging/crops`), and the frame goes on.
The classifier's own thread turns waiting crops of all streams into batches. What it finds out comes with the object's
track in the messages of later frames; without tracking, in messages of its own. No frame ever waits for a classifier.
"""
