// Markdown as our documentation uses it, as elements: headings, paragraphs, lists, tables, code, quotes, links.

import { el } from "./dom.js";

const INLINE = /`` ?(.+?) ?``|`([^`]+)`|!\[([^\]]*)\]\([^)]*\)|\[((?:[^\][]|\[[^\]]*\])*)\]\(([^)\s]+)\)|\*\*((?:`[^`]*`|[^`])+?)\*\*|(?<![\w*])\*([^*\s][^*]*)\*(?!\w)|(https?:\/\/[^\s<>)]*[^\s<>).,;:])/g;
const ITEM = /^( *)([-*]|\d+\.) +(.*)$/;

// As GitHub names headings in links.
export const slug = (text) => text.toLowerCase().replace(/[^\p{L}\p{N}_ -]/gu, "").replaceAll(" ", "-");

// `linked` turns an address into the one to be used, or null where there is nothing to go to.
function inline(text, linked) {
  const nodes = [];
  let at = 0;
  for (const found of text.matchAll(INLINE)) {
    nodes.push(text.slice(at, found.index));
    at = found.index + found[0].length;
    const [, long, code, picture, words, address, bold, slanted, plain] = found;
    if (long ?? code) nodes.push(el("code", { text: long ?? code }));
    else if (picture != null) nodes.push(el("em", { text: picture }));
    else if (words != null || plain) {
      const href = linked(address ?? plain);
      const inner = inline(words ?? "", linked);
      nodes.push(href == null ? el("span", {}, ...inner) : el("a", { href }, ...(plain ? [plain] : inner)));
    } else if (bold) nodes.push(el("strong", {}, ...inline(bold, linked)));
    else nodes.push(el("em", {}, ...inline(slanted, linked)));
  }
  nodes.push(text.slice(at));
  return nodes.map((node) => (typeof node === "string" ? node.replace(/\\([\\`*_{}[\]()#+.!|<>-])/g, "$1") : node));
}

// A bar in code is written \| in a table.
const cells = (row) => row.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));

function table(rows, linked) {
  const [head, , ...body] = rows.map(cells);
  const line = (row, kind) => el("tr", {}, ...head.map((_, i) => el(kind, {}, ...inline(row[i] ?? "", linked))));
  const top = head.some(Boolean) ? [el("thead", {}, line(head, "th"))] : [];
  return el("div", { class: "table", tabindex: "0" }, el("table", {}, ...top, el("tbody", {}, ...body.map((row) => line(row, "td")))));
}

function list(lines, linked) {
  const [, margin, mark] = ITEM.exec(lines[0]);
  const items = [];
  for (const line of lines) {
    const found = ITEM.exec(line);
    if (found && found[1].length === margin.length) items.push([found[3]]);
    else items.at(-1).push(line.slice(Math.min(line.search(/\S|$/), margin.length + (/\d/.test(mark) ? 3 : 2))));
  }
  return el(/\d/.test(mark) ? "ol" : "ul", {}, ...items.map((item) => {
    const inner = blocks(item, linked);
    return el("li", {}, ...(inner.length === 1 && inner[0].tagName === "P" ? inner[0].childNodes : inner));
  }));
}

function blocks(lines, linked) {
  const out = [];
  let at = 0;
  const take = (wanted) => {
    const begin = at;
    while (at < lines.length && wanted(lines[at])) at += 1;
    return lines.slice(begin, at);
  };
  while (at < lines.length) {
    const line = lines[at];
    const fence = /^ *```/.test(line);
    const heading = /^(#{1,6}) +(.*?)#*$/.exec(line);
    if (!line.trim() || line.startsWith("<!--")) at += 1;
    else if (fence) {
      at += 1;
      const code = take((each) => !/^ *```/.test(each));
      at += 1;
      out.push(el("pre", { tabindex: "0" }, el("code", { text: code.join("\n") })));
    } else if (heading) {
      at += 1;
      const node = el(`h${heading[1].length}`, {}, ...inline(heading[2], linked));
      node.id = slug(node.textContent);
      out.push(node);
    } else if (line.startsWith("|")) out.push(table(take((each) => each.startsWith("|")), linked));
    else if (/^ {4}/.test(line)) out.push(el("pre", { tabindex: "0" }, el("code", { text: take((each) => /^ {4}/.test(each)).map((each) => each.slice(4)).join("\n") })));
    else if (line.startsWith(">")) out.push(el("blockquote", {}, ...blocks(take((each) => each.startsWith(">")).map((each) => each.replace(/^> ?/, "")), linked)));
    else if (ITEM.test(line)) {
      let blank = false;
      const rest = take((each) => {
        const goes = ITEM.test(each) || /^ {2,}/.test(each) || !each.trim() || !blank;
        const ends = blank && !ITEM.test(each) && !/^ {2,}/.test(each);
        blank = !each.trim();
        return goes && !ends && !/^#|^\|/.test(each);
      });
      while (rest.length && !rest.at(-1).trim()) rest.pop();
      out.push(list(rest, linked));
    } else out.push(el("p", {}, ...inline(take((each) => each.trim() && !/^#{1,6} |^ *```|^\||^>/.test(each) && !(ITEM.test(each) && each !== line)).join(" "), linked)));
  }
  return out;
}

export const markdown = (text, linked) => blocks(text.split("\n"), linked);
