// The filters of the event list. They are part of the address, so that a choice can be kept and linked to.

import { el } from "./dom.js";

const CHOICES = ["stream", "rule", "label"];

const local = (seconds) => {
  const date = new Date(seconds * 1000);
  return new Date(date.getTime() - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
};

export class Filters {
  #rules = {};

  constructor(form, onChange) {
    this.form = form;
    this.onChange = onChange;
    this.fields = Object.fromEntries([...CHOICES, "span", "since", "until"].map((id) => [id, form.querySelector(`#${id}`)]));
    this.clear = form.querySelector("#clear");
    const asked = new URLSearchParams(location.search);
    for (const id of CHOICES) this.#choose(id, asked.get(id) ?? "");
    for (const id of ["since", "until"]) {
      const seconds = Number(asked.get(id));
      if (asked.get(id) && Number.isFinite(seconds)) this.fields[id].value = local(seconds);
    }
    const span = asked.get("span") ?? "";
    this.fields.span.value = this.fields.since.value || this.fields.until.value ? "own" : [...this.fields.span.options].some((option) => option.value === span) ? span : "";
    form.addEventListener("change", () => this.#changed());
    form.addEventListener("submit", (event) => event.preventDefault());
    this.clear.addEventListener("click", () => {
      for (const field of Object.values(this.fields)) field.value = "";
      this.#changed();
      this.fields.stream.focus();
    });
    this.#show();
  }

  // A value that nothing else offers is one of the address; it must stay visible.
  #choose(id, value) {
    const field = this.fields[id];
    if (value && ![...field.options].some((option) => option.value === value)) field.append(el("option", { value, text: value }));
    field.value = value;
  }

  #changed() {
    this.#show();
    const address = new URLSearchParams(Object.entries(this.#chosen()).filter(([, value]) => value));
    if (this.fields.span.value === "own") address.delete("span");
    history.replaceState(null, "", address.size ? `?${address}` : location.pathname);
    this.onChange();
  }

  #show() {
    const own = this.fields.span.value === "own";
    for (const node of this.form.querySelectorAll(".own")) node.hidden = !own;
    this.clear.hidden = !this.any;
  }

  #chosen() {
    const { span, since, until } = this.fields;
    const chosen = Object.fromEntries(CHOICES.map((id) => [id, this.fields[id].value]));
    const seconds = (field) => (field.value ? String(new Date(field.value).getTime() / 1000) : "");
    if (span.value === "own") return { ...chosen, since: seconds(since), until: seconds(until) };
    return { ...chosen, span: span.value };
  }

  get any() {
    return Object.values(this.#chosen()).some(Boolean);
  }

  // Whether only events of the past are asked for: none can follow.
  get past() {
    const until = Number(this.#chosen().until);
    return until > 0 && until < Date.now() / 1000;
  }

  query(more) {
    const { span, ...chosen } = this.#chosen();
    const query = new URLSearchParams(more);
    // The server takes commas for several values; a name with a comma is not worth a syntax of its own.
    for (const [name, value] of Object.entries(chosen)) if (value) query.set(name, value);
    if (span) query.set("since", Math.floor(Date.now() / 1000 - Number(span)));
    return query;
  }

  // Offers what occurs in events besides what is configured.
  offer(events) {
    const known = { stream: new Set(), rule: new Set(), label: new Set() };
    for (const [stream, rules] of Object.entries(this.#rules)) {
      if (this.fields.stream.value && this.fields.stream.value !== stream) continue;
      for (const rule of [...rules.zones, ...rules.lines]) known.rule.add(rule.name);
    }
    for (const event of events) for (const id of CHOICES) if (event[id]) known[id].add(event[id]);
    for (const id of CHOICES) {
      const field = this.fields[id];
      const present = new Set([...field.options].map((option) => option.value));
      const added = [...known[id]].filter((value) => !present.has(value));
      if (!added.length) continue;
      const all = [...present, ...added].filter(Boolean).sort((a, b) => a.localeCompare(b));
      const value = field.value;
      field.replaceChildren(el("option", { value: "", text: "all" }), ...all.map((each) => el("option", { value: each, text: each })));
      field.value = value;
    }
  }

  async load() {
    try {
      const [state, rules] = await Promise.all(["state", "rules"].map(async (path) => (await fetch(path)).json()));
      this.#rules = rules;
      this.offer(state.streams.map(({ stream }) => ({ stream })));
    } catch {
      // The list works without the names.
    }
  }
}
