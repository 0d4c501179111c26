// Lists of bookmarks, which the browser keeps, for this run and store only.
const marks = { lists: { bookmarks: [] }, current: "bookmarks" };

function marksKey() {
  return `actstore-explorer:${all.record.content_id}:${all.record.name}`;
}

function checkedLists(value) {
  const lists = {};
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new Error("wanted lists by their names");
  for (const [name, items] of Object.entries(value)) {
    if (!Array.isArray(items)) throw new Error(`${name} is no list`);
    const fit = items.filter((item) => Number.isInteger(item) && item >= 0 && item < all.m);
    lists[name.slice(0, 80)] = [...new Set(fit)];
  }
  return lists;
}

function keepMarks() {
  // A browser may keep nothing for files, or nothing at all.
  try { localStorage.setItem(marksKey(), JSON.stringify(marks.lists)); } catch { byId("list-note").textContent = "The browser does not keep lists here: export them."; }
  showMarks();
}

function isMarked(latent) {
  return marks.lists[marks.current].includes(latent);
}

function toggleMark(latent) {
  if (latent < 0) return;
  const items = marks.lists[marks.current];
  const place = items.indexOf(latent);
  if (place < 0) items.push(latent);
  else items.splice(place, 1);
  keepMarks();
  if (byId("star")) byId("star").textContent = isMarked(list.chosen) ? "★ in list" : "☆ bookmark";
}

function showMarks() {
  const names = Object.keys(marks.lists);
  byId("list-name").replaceChildren(...names.map((name) => make("option", { value: name, text: name })));
  byId("list-name").value = marks.current;
  byId("list-items").replaceChildren(...marks.lists[marks.current].map((latent) => make("li", {}, linkTo(latent))));
}

function choose(name) {
  marks.current = name;
  showMarks();
}

function startMarks() {
  try {
    const lists = checkedLists(JSON.parse(localStorage.getItem(marksKey()) || "{}"));
    marks.lists = { bookmarks: [], ...lists };
  } catch { /* what cannot be read is begun anew */ }
  byId("show-lists").addEventListener("click", () => {
    const box = byId("lists");
    box.hidden = !box.hidden;
    byId("show-lists").setAttribute("aria-expanded", String(!box.hidden));
  });
  byId("list-name").addEventListener("change", (event) => choose(event.target.value));
  byId("add-list").addEventListener("click", () => {
    const name = byId("new-list").value.trim();
    if (!name) return;
    marks.lists[name] ??= [];
    marks.current = name;
    byId("new-list").value = "";
    keepMarks();
  });
  byId("drop-list").addEventListener("click", () => {
    delete marks.lists[marks.current];
    marks.lists.bookmarks ??= [];
    marks.current = Object.keys(marks.lists)[0];
    keepMarks();
  });
  byId("export-lists").addEventListener("click", () => download("lists.json", JSON.stringify(marks.lists, null, 1)));
  byId("import-lists").addEventListener("change", async (event) => {
    try {
      Object.assign(marks.lists, checkedLists(JSON.parse(await event.target.files[0].text())));
      byId("list-note").textContent = "Imported.";
    } catch (error) {
      byId("list-note").textContent = `Not imported: ${error.message}`;
    }
    keepMarks();
  });
  showMarks();
}
