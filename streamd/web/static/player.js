// One event, large: its snapshot, its clip, and the way to the events before and after it.

import { el, setText } from "./dom.js";

const LEAD_S = 2; // of a clip, shown before the event

const moment = (seconds) => new Date(seconds * 1000).toLocaleString(undefined, { dateStyle: "full", timeStyle: "medium", hour12: false });
const written = (event, role) => event.media[role]?.state === "written";
const name = (role) => (role === "snapshot" ? "Snapshot" : role === "snapshot_plain" ? "Without box" : role === "clip" ? "Clip" : `Clip, part ${role.slice(5)}`);

// Where the event is in its clip, which it may share with many others: seconds from the beginning of the file to shortly
// before the event's.
async function begin(event, role) {
  if (!written(event, "clip_json")) return 0;
  try {
    const answer = await fetch(event.media.clip_json.url, { signal: AbortSignal.timeout(3000) });
    const part = (await answer.json()).parts[role === "clip" ? 0 : Number(role.slice(5)) - 1];
    const at = event.began - part.starts_at;
    return at < part.s ? Math.max(0, at - LEAD_S) : 0;
  } catch {
    return 0; // it can be watched from its beginning
  }
}

export class Player {
  #events = [];
  #at = 0;
  #role = "";

  constructor(dialog, onClose) {
    this.dialog = dialog;
    this.stage = el("div", { class: "stage" });
    this.title = el("h2", { id: "playertitle" });
    this.note = el("p");
    this.roles = el("div", { class: "acts", role: "group", "aria-label": "What is shown" });
    this.before = el("button", { type: "button", class: "quiet", text: "‹ Newer", "aria-keyshortcuts": "ArrowLeft" });
    this.after = el("button", { type: "button", class: "quiet", text: "Older ›", "aria-keyshortcuts": "ArrowRight" });
    this.save = el("a", { class: "quiet", text: "Download", download: "" });
    this.shut = el("button", { type: "button", class: "quiet strong", text: "Close", "aria-keyshortcuts": "Escape" });
    dialog.setAttribute("aria-labelledby", "playertitle");
    dialog.append(
      this.stage,
      el("div", { class: "info" }, el("div", {}, this.title, this.note), this.roles, el("div", { class: "acts" }, this.before, this.after, this.save, this.shut)),
    );
    this.before.addEventListener("click", () => this.#step(-1));
    this.after.addEventListener("click", () => this.#step(1));
    this.shut.addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside it
    dialog.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey || event.target.tagName === "VIDEO") return; // it seeks
      if (event.key === "ArrowLeft") this.#step(-1);
      else if (event.key === "ArrowRight") this.#step(1);
      else return;
      event.preventDefault();
    });
    dialog.addEventListener("close", () => {
      this.#empty();
      onClose(this.#events[this.#at]);
    });
  }

  // Shows one of the events: the clip if there is one.
  open(index, events) {
    this.#events = events;
    this.#at = index;
    this.#show(this.#kinds().find((role) => role.startsWith("clip")) ?? "snapshot");
    this.dialog.showModal();
    this.shut.focus();
  }

  #kinds() {
    const event = this.#events[this.#at];
    return ["snapshot", "snapshot_plain", ...event.clips].filter((role) => written(event, role));
  }

  // The events as they are listed now: what was being recorded may be there.
  refresh(events) {
    const at = events.indexOf(this.#events[this.#at]);
    if (!this.dialog.open || at < 0) return;
    this.#events = events;
    this.#at = at;
    this.#describe();
  }

  #next(step) {
    let at = this.#at + step;
    const shows = (event) => written(event, "snapshot") || event.clips.some((role) => written(event, role));
    while (at >= 0 && at < this.#events.length && !shows(this.#events[at])) at += step;
    return at >= 0 && at < this.#events.length ? at : null;
  }

  #step(step) {
    const at = this.#next(step);
    if (at == null) return;
    this.#at = at;
    const kinds = this.#kinds();
    this.#show(kinds.includes(this.#role) ? this.#role : (kinds.find((role) => role.startsWith("clip")) ?? kinds[0]));
  }

  // Ends the download, too.
  #empty() {
    const video = this.stage.querySelector("video");
    video?.removeAttribute("src");
    video?.load();
    this.stage.replaceChildren();
  }

  // Everything around the picture or the clip.
  #describe() {
    const event = this.#events[this.#at];
    setText(this.title, `${event.title}: ${[event.stream, event.rule].filter(Boolean).join(" · ")}`);
    const clips = event.clips.map((each) => event.media[each]);
    const failed = clips.find(({ state }) => state === "failed");
    const recording = clips.some(({ state }) => state === "pending");
    setText(this.note, [moment(event.began), failed ? `clip failed: ${failed.reason.replaceAll("_", " ")}` : recording ? "clip is being recorded" : ""].filter(Boolean).join(" · "));
    this.before.disabled = this.#next(-1) == null;
    this.after.disabled = this.#next(1) == null;
    const kinds = this.#kinds();
    this.roles.hidden = kinds.length < 2;
    const told = [event.id, this.#role, ...kinds].join(" ");
    if (this.roles.dataset.told === told) return;
    const focused = this.roles.contains(document.activeElement) ? document.activeElement.textContent : null;
    this.roles.dataset.told = told;
    this.roles.replaceChildren(
      ...kinds.map((kind) => {
        const button = el("button", { type: "button", class: "quiet", text: name(kind), "aria-pressed": String(kind === this.#role) });
        button.addEventListener("click", () => this.#show(kind));
        return button;
      }),
    );
    [...this.roles.children].find((button) => button.textContent === focused)?.focus();
  }

  #show(role) {
    const event = this.#events[this.#at];
    const media = event.media[role];
    this.#role = role;
    this.#empty();
    this.#describe();
    this.save.href = `${media.url}?download`;
    if (role.startsWith("clip")) this.#play(event, role);
    else this.stage.append(el("img", { src: media.url, alt: `Snapshot: ${event.title} at ${event.stream}` }));
  }

  async #play(event, role) {
    const media = event.media[role];
    // What a browser plays depends on the codecs more than on the kind of file, so it may try each.
    const video = el("video", { controls: true, autoplay: true, playsinline: true });
    video.muted = true; // or browsers may not begin by themselves
    video.addEventListener("error", () => video.isConnected && this.#cannot(event, media));
    // Of pictures that it does not know, beside sound that it does, it would play the sound alone.
    video.addEventListener("loadedmetadata", () => video.isConnected && !video.videoWidth && this.#cannot(event, media));
    this.stage.append(video);
    const from = await begin(event, role);
    if (video.isConnected) video.src = from ? `${media.url}#t=${from.toFixed(2)}` : media.url;
  }

  #cannot(event, media) {
    this.#empty();
    if (written(event, "snapshot")) this.stage.append(el("img", { src: event.media.snapshot.url, alt: "" }));
    const link = el("a", { href: `${media.url}?download`, download: "", text: "Download it" });
    this.stage.append(el("p", { class: "cannot", role: "status" }, "This browser cannot play the clip. ", link, " and open it in a video player such as VLC."));
  }
}
