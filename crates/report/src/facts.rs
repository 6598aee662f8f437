//! What is known about the printed numbers, from comparing them with each other.

/// What holds for Tables 3, 5 and 6 of the class-centric paper alike.
const SINGLE: &str = "The tables say \"mean of 10 experiments\"; the numbers are those of single runs: nearly \
    every cell is a count over the size of the test set, which a mean of ten would be about once in ten cells.";

/// The facts about one printed table, by its id; none for others.
pub fn of(table: &str) -> &'static [&'static str] {
    match table {
        "p1.t1" => &[
            "The column heads print image sizes in mm; they are pixels.",
            "RSC11 has about 100 images a class, 1232 in all; AID's own page says 0.5 to 8 m and 220 to 420 images \
             a class.",
        ],
        "p1.t3" => &[
            SINGLE,
            "At 80 % all 20 cells are k/420. At 60 % 18 of 20 are k/840; DKD 91.91 and VID 89.41 are 772/840 and \
             751/840, rounded up. A difference of 0.24 points at 80 % is one image.",
            "Several methods stand below the student alone, SP with MobileNetV2 by 31 points: its weight of 3000, \
             taken over from another network, is the likely cause.",
            "Whether the students began from weights is not said; their own accuracies fit training from scratch.",
            "The teacher's accuracy on UCM is not printed.",
        ],
        "p1.t4" => &[
            "\"Compression\" is the part of the parameters that remains, not what is saved.",
            "The FLOPs are 8 x the multiply-accumulates of one image of 224 x 224, batch norms counted twice.",
        ],
        "p1.t5" => &[
            SINGLE,
            "RSC11: every value is k/497; 40 % of 1232 images would be 492 or 493. RSSCN7: all are k/1120. AID: all \
             but VID are k/4000; 88.96 lies between 3558/4000 and 3559/4000.",
            "On RSSCN7 the best other method, RKD, equals the student alone, and all others stand below it.",
            "The student is better than its teacher on RSC11 and RSSCN7, not on AID.",
        ],
        "p1.t6" | "p1.t7" => &[
            "The four confusion matrices of Table 7 have classes of different sizes (overpass 43, 44, 37, 36; roads \
             53, 61, 61, 66 images), so each model was tested on another random split: the comparison is not paired.",
            "The gain of 1.81 points over NST_all is 9 images of 497, about 1.2 standard errors of an unpaired \
             difference.",
            "Only the order of the entries of a row of Table 7 is known, not their columns; \"地建筑\" stands twice \
             for \"低建筑\" (low buildings).",
            "Ours are tested on one split for all methods of a seed.",
        ],
        "p2.t1" => &[
            "The check marks of the rows are lost; which is which follows from the text.",
            "The teacher is printed as 77.74 in the table and once as 77.76 in the text; the difference of 1.21 fits \
             77.74. The gain is 4.45 in the text, as in the table, and 4.48 in abstract and conclusion; 6.17 % is \
             relative to the student alone.",
            "The formulas are lost: ours are a reconstruction, and what the refinement adds to the loss by itself is \
             not said; the row `frkd_refine` has our reading of it.",
            "Single runs; no repeats are claimed.",
        ],
        "p2.t2" => &[
            "The table itself is not at hand; what stands here is printed in the text or follows from its differences.",
            "The paper calls `ka` SKD and `skdd` SKDD. FCN, ANN and ICNet are networks that are not built here.",
            "The decoder of the paper's student is not known: no width of ours has its 14.07 M parameters. Its 270.5 G \
             are given without a resolution; ours are two operations for each multiply-accumulate of one training crop.",
            "Single runs; no repeats are claimed.",
        ],
        "p2.fig4" => &[
            "The values stand only in a figure that is not at hand; the text names the points and the best: 0.5 on VOC, \
             0.4 on Cityscapes.",
        ],
        "p3.cub" | "p3.ablation" => &[
            "The tables of the paper are lost; the numbers are those of its text. Those of one step (92.4), of \
             asynchronous steps (92.5) and of features (91.6) follow from printed differences.",
            "92.8 % of CUB's 5,794 test images are 5,377, give or take 3: a tenth of a point is six images, so the \
             differences of 0.1 to 0.4 points are 6 to 23 images of one run.",
            "The gain of 1.0 % over Swin-L is 0.9 points. The text calls the numbers falls and rises in %, they are points.",
            "What the output modules are made of, their length, the recipe and its learning rates are not in the text: \
             they are ours.",
        ],
        "p3.nabirds" => &[
            "The text gives NABirds 550 classes; the dataset has 555.",
            "That the three numbers of the abstract belong to CUB, NABirds and Dogs in this order is assumed.",
        ],
        "p3.dogs" => &[
            "The images of Stanford Dogs come from ImageNet's training set: a network that begins from ImageNet has seen \
             the test images with their labels, so results are optimistic.",
            "That the three numbers of the abstract belong to CUB, NABirds and Dogs in this order is assumed.",
        ],
        "p4.text" => &[
            "Only the abstract is at hand: datasets, split, weights and schedule are our choice.",
            "99.04 would be 4952/5000 (AID at 50 %) or 5348/5400 (EuroSAT at 80 %); 416/420 (UCM at 80 %) is 99.048.",
            "99 % is not to be expected from scratch: without ImageNet weights this tests the mechanism, not the \
             paper.",
        ],
        _ => &[],
    }
}

/// The facts as a Markdown list.
pub(crate) fn list(facts: &[&str]) -> String {
    facts.iter().map(|f| format!("- {f}\n")).collect()
}
