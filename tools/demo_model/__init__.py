"""How streamd's bundled detector is trained. The commands are in tools/train_demo_model.py; each module is a step.

`teacher` runs the published detectors whose knowledge is passed on, `labels` merges their boxes with the labelled ones,
`pack` makes and reads the one file of pictures and labels, `augment` draws training pictures, `net` is the network,
`warm` gives it the weights of an exported one, `loss` turns boxes into what each cell should say and measures what it
says, `distill` does so with the teachers' answers, `plan` describes a run, `speed` compiles and records a step, `train`
trains, `export` writes ONNX and its sidecar.
"""

CLASSES = ("person", "bicycle", "car", "motorcycle", "bus", "truck")
"""The detector's classes, in order."""
COCO_IDS = (0, 1, 2, 3, 5, 7)
"""Their numbers among COCO's 80."""
STRIDES = (8, 16, 32)
ANCHORS = (24.0, 64.0, 160.0)
"""One square anchor per stride, in input pixels; YOLOv5's decoding covers sizes from 0 to four times the anchor."""
SIZE = 416
"""Input width and height."""
PAD = 114
"""Grey level around a letterboxed picture."""
