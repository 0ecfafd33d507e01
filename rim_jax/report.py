def write_report(workdir, config): return workdir
def show_results(console, folder, n, name=None): console.print(open(f'{folder}/results.json').read())
def show_answers(console, q, blocks, texts, config): console.print(q, texts)
def load_predictions(folder, name=None): return []
