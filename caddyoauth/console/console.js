const answer = await fetch("../");
document.getElementById("main").textContent = answer.status + " " + await answer.text();
