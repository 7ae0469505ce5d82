"""What other programs call a field of the configuration: DeepStream, Frigate, Ultralytics, FFmpeg, older tutorials.

Names are lower case with underscores. Each stands for one field, or for several where it depends on the section.
"""

from __future__ import annotations

_NAMES: dict[tuple[str, ...], str] = {
    ("url",): "source uri input rtsp_url rtsp stream_url ffmpeg",
    ("url", "state_dir", "folder"): "path",
    ("streams",): "cameras sources inputs",
    ("sinks",): "outputs",
    ("path",): "model_path weights file filename onnx onnx_file onnx_model model_file engine_file model_engine_file",
    ("labels",): "names class_names labelmap labelmap_path labelfile_path label_file",
    ("classes",): "objects filter filters class",
    ("classes", "model.labels"): "labels label",
    ("conf",): "confidence threshold conf_thres conf_threshold confidence_threshold min_score pre_cluster_threshold",
    ("iou",): "nms iou_thres iou_threshold nms_threshold nms_iou nms_iou_threshold",
    ("max_det",): "max_detections topk top_k",
    ("input_size",): "imgsz img_size image_size width height infer_dims",
    ("scale",): "net_scale_factor",
    ("mean",): "offsets",
    ("color",): "input_pixel_format model_color_format channel_order",
    ("precision",): "half fp16 int8 network_mode",
    ("device",): "gpu gpu_id",
    ("max_fps",): "fps framerate frame_rate interval every vid_stride frame_skip skip_frames drop_frame_interval",
    ("id",): "name camera_name",
    ("kind",): "type model_type tracker_type",
    ("decode",): "hwaccel hwaccel_args hw_accel",
    ("transport",): "rtsp_transport select_rtp_protocol",
    ("policy",): "drop drop_on_latency",
    ("ring",): "queue queue_size buffer buffer_size",
    ("reconnect",): "rtsp_reconnect_interval_sec reconnect_interval reconnect_s retry_interval",
    ("read_timeout_s", "age_ms"): "timeout timeout_s timeout_ms wait_ms batched_push_timeout",
    ("read_timeout_s",): "stimeout rw_timeout",
    ("start_s", "points"): "start",
    ("look",): "motion",
    ("masks",): "mask",
    ("crop",): "roi",
    ("camera_health",): "health",
    ("clip",): "record recording smart_record",
    ("snapshot",): "snapshots",
    ("start",): "from",
    ("end",): "to",
    ("points",): "polygon coordinates coords vertices x1 y1 x2 y2",
    ("pre_s",): "pre_capture pre_roll",
    ("post_s",): "post_capture post_roll",
    ("loiter_s",): "loitering_time",
    ("tracking",): "tracker",
    ("lost_s",): "track_buffer max_age",
    ("high",): "track_high_thresh",
    ("low",): "track_low_thresh",
    ("gate",): "match_thresh",
    ("max",): "batch_size max_batch",
    ("engine",): "detectors backend",
    ("model",): "primary_gie pgie detector",
    ("classifiers",): "secondary_gie sgie",
    ("prefix",): "topic topic_prefix",
    ("username",): "user user_name",
    ("password",): "pass passwd",
    ("bearer_token",): "headers authorization api_key",
    ("keep_days",): "retain retention retain_days",
    ("logging",): "log logger",
    ("level",): "log_level loglevel verbosity",
    ("metrics",): "http prometheus web ui api",
    ("listen",): "host port",
}  # fmt: skip

FIELDS = {name: fields for fields, names in _NAMES.items() for name in names.split()}
"""Fields by what others call them, the likeliest first; with a dot, from the top of the configuration."""

VAGUE = frozenset((
    "path", "file", "filename", "label", "class", "filter", "filters", "interval", "every", "type", "name", "drop",
    "queue", "buffer", "timeout", "timeout_s", "timeout_ms", "wait_ms", "headers", "from", "to", "start", "motion",
    "health", "http", "web", "ui", "api", "max_age", "topk", "top_k", "pass", "x1", "y1", "x2", "y2", "width",
    "height", "user", "detector", "log",
))  # fmt: skip
"""Names that mean something else elsewhere: they are looked for in their own section and those below it only."""

KINDS = {
    name: kind
    for kind, names in {
        "yolov8": "yolo yolov6 yolov7 yolov9 yolov11 yolov12 yolo8 yolo9 yolo11 yolo12",
        "end_to_end": "yolov10 yolo10 yolo26 nms",
        "yolov5_cat": "yolov5 yolo5",
        "detr": "dfine d_fine deim",
        "rtdetr": "rt_detr",
        "segment": "seg",
        "tensorrt": "trt cuda gpu",
        "openvino": "cpu intel",
        "zmq": "zeromq",
        "webhook": "http https",
        "jsonl": "json file",
    }.items()
    for name in names.split()
}
"""Kinds of heads, engines and sinks by what others call them."""
