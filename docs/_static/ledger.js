// Makes the table of claims searchable, and filterable by verdict and chapter. An address may ask for it:
// ledger.html?verdict=partly&text=adam
document.addEventListener("DOMContentLoaded", () => {
  const table = document.querySelector("#claims-ledger table");
  if (!table) return;
  const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
  const rows = [...table.tBodies[0].rows];
  const cell = (row, head) => row.cells[heads.indexOf(head)].textContent.trim();
  table.classList.add("ledger");
  for (const row of rows) {
    row.dataset.verdict = cell(row, "verdict");
    row.id = `claim-${cell(row, "claim")}`;
    [...row.cells].forEach((data, i) => (data.dataset.label = heads[i]));
  }

  const asked = new URLSearchParams(location.search);
  const controls = document.createElement("form");
  controls.className = "ledger-controls";
  const text = document.createElement("input");
  Object.assign(text, { type: "search", name: "text", placeholder: "search claims", value: asked.get("text") || "" });
  text.setAttribute("aria-label", "search claims");
  const choose = (head) => {
    const select = document.createElement("select");
    select.name = head;
    select.setAttribute("aria-label", head);
    const values = [...new Set(rows.map((row) => cell(row, head)))];
    select.append(new Option(`every ${head}`, ""), ...values.map((value) => new Option(value, value)));
    select.value = asked.get(head) || "";
    return select;
  };
  const selects = [choose("verdict"), choose("chapter")];
  const count = document.createElement("output");
  controls.append(text, ...selects, count);
  const scroller = table.closest(".pst-scrollable-table-container") || table;
  scroller.before(controls);

  const show = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const said = row.textContent.toLowerCase();
      const chosen = selects.every((select) => !select.value || cell(row, select.name) === select.value);
      row.hidden = !(chosen && words.every((word) => said.includes(word)));
    }
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} claims`;
  };
  controls.addEventListener("input", show);
  controls.addEventListener("submit", (event) => event.preventDefault());
  show();
});
