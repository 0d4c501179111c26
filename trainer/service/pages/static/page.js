// What lives on the pages: parts that are asked for again, what is said aloud, the choice
// of runs, the login by a link. Text enters the page by textContent only.
'use strict';
(() => {
  const byId = id => document.getElementById(id);
  document.documentElement.classList.add('js');

  // A page that nobody sees asks for nothing.
  document.addEventListener('htmx:before:request', event => {
    const isLive = event.target.matches?.('#live, #now, #more');
    if (isLive && document.hidden) event.preventDefault();
  });

  // What changed is said once, in a sentence.
  let said = document.querySelector('[data-summary]')?.dataset.summary;
  document.addEventListener('htmx:after:swap', () => {
    const now = document.querySelector('[data-summary]')?.dataset.summary;
    if (now && now !== said) byId('told').textContent = now;
    said = now ?? said;
    showPicked();
    document.dispatchEvent(new Event('page:changed'));
  });

  // `/login#token=...`: the token is put in, and taken out of the address.
  const login = byId('login');
  const link = /^#token=(actstore_\w+)$/.exec(location.hash);
  if (login && location.hash.startsWith('#token=')) history.replaceState(null, '', location.pathname + location.search);
  if (login && link) {
    byId('token').value = link[1];
    login.requestSubmit();
  }

  // Runs that are ticked stay ticked on other pages of the list.
  const KEY = 'picked runs';
  const picked = new Set(JSON.parse(sessionStorage.getItem(KEY) ?? '[]'));
  const boxes = () => [...document.querySelectorAll('#list input[name="run"]')];
  function showPicked() {
    const count = byId('picked');
    if (!count) return;
    for (const box of boxes()) box.checked = picked.has(box.value);
    const most = Number(count.dataset.most);
    const n = picked.size;
    count.textContent = n === 0 ? 'tick two or more' : n > most ? `${n} selected; at most ${most} are compared` : `${n} selected`;
    if (n && !byId('clear')) {
      const clear = document.createElement('button');
      clear.type = 'button';
      clear.id = 'clear';
      clear.textContent = 'Clear';
      clear.addEventListener('click', () => { picked.clear(); keep(); });
      count.after(clear);
    } else if (!n) byId('clear')?.remove();
    byId('compare').disabled = n === 0;
  }
  function keep() {
    sessionStorage.setItem(KEY, JSON.stringify([...picked]));
    showPicked();
  }
  document.addEventListener('change', event => {
    const box = event.target;
    if (!box.matches('#list input[name="run"]')) return;
    if (box.checked) picked.add(box.value); else picked.delete(box.value);
    keep();
  });
  document.addEventListener('formdata', event => {
    if (event.target.id !== 'list') return;
    event.formData.delete('run');
    for (const id of picked) event.formData.append('run', id);
  });
  showPicked();

  // The form for a new run
  byId('store')?.addEventListener('change', event => {
    const form = event.target.form;
    for (const box of form.querySelectorAll('input[name="sites"]')) box.checked = false;
    form.requestSubmit(form.querySelector('button[value="store"]'));
  });
  byId('wrong')?.focus();
})();
