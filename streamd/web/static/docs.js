// The documentation that is installed with streamd.

import { el, remembered, setText } from "./dom.js";
import { markdown } from "./markdown.js";

const by = (id) => document.getElementById(id);
document.documentElement.dataset.theme = remembered("theme", ["auto", "dark", "light"]);

const asked = new URLSearchParams(location.search).get("page") ?? "README";
const address = (name) => (name === "README" ? "docs.html" : `docs.html?page=${encodeURIComponent(name)}`);

function linked(names) {
  return (target) => {
    if (/^https?:/.test(target) || target.startsWith("#")) return target;
    const [, name, section] = /^(?:docs\/)?([\w-]+)\.md(#.*)?$/.exec(target) ?? [];
    return names.includes(name) ? `${address(name)}${section ?? ""}` : null; // other files are not on this machine
  };
}

try {
  const names = await (await fetch("docs/")).json();
  if (!names.length) throw new Error("it is not installed");
  const name = names.includes(asked) ? asked : "README";
  const title = (each) => (each === "README" ? "Overview" : (each[0].toUpperCase() + each.slice(1)).replaceAll("-", " "));
  const pages = ["README", ...names.filter((each) => each !== "README").sort((a, b) => title(a).localeCompare(title(b)))];
  by("pages").append(...pages.map((each) => el("a", { href: address(each), text: title(each), "aria-current": each === name ? "page" : null })));
  by("pages").querySelector("[aria-current]").scrollIntoView({ block: "nearest", inline: "center" });
  const answer = await fetch(`docs/${name}.md`);
  if (!answer.ok) throw new Error(`streamd responded with ${answer.status}`);
  by("text").replaceChildren(...markdown(await answer.text(), linked(names)));
  document.title = `${title(name)} · streamd`;
  if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
} catch (error) {
  by("banner").hidden = false;
  setText(by("banner"), `No documentation: ${error.message}`);
}
